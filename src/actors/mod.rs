//! Actors: ractor shells around the cores. Owns: supervision, admission, and who performs which effect.
