//! Admin API: HTTP and JSON on a Unix socket, for the CLI, for programs and for people with `curl`.
//! Owns: paths, errors, limits of a request, the socket and who may use it, the API's description.
//! Always: one error shape; one mutation, one audit record; nothing is decided here.
//! Not here: what a region knows and does ([`Region`], implemented by the node), the CLI (`cli/`).
//!
//! A request takes this way: `server` accepts and checks the peer, `api` gives it an id, a deadline and a permit,
//! `routes` translates it into one call of [`Region`], `call` forwards it where another region owns its object.

mod api;
mod call;
mod chaos;
pub mod client;
mod region;
mod routes;
mod server;
mod socket;
mod stream;
pub mod telemetry;
mod views;

pub use api::Api;
pub use chaos::*;
pub use region::*;
pub use routes::{ROUTES, openapi};
pub use server::{ServeError, Server};
pub use views::*;
