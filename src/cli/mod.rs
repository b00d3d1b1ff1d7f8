//! Command line: commands, tables, progress. Speaks only the API, except for the commands that start things.
