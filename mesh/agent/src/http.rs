//! Health and metrics over HTTP, on loopback by default.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics;
use crate::status::not_ready;
use crate::status_server::Source;

/// How old the last reconcile may be: several of the loop's ticks, and its slowest steps.
const ALIVE: Duration = Duration::from_secs(60);

/// What the handlers answer from.
#[derive(Clone, Debug)]
pub struct HttpState {
    /// The agent's own state.
    pub source: Source,
}

/// `/healthz`: the loop runs. `/readyz`: the node is protected and its tunnel answers, else the
/// reasons. `/metrics`: Prometheus' text format.
pub fn router(state: HttpState) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(state)
}

/// Serves for ever.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(listener: TcpListener, state: HttpState) -> std::io::Result<()> {
    axum::serve(listener, router(state)).await
}

async fn healthz(State(state): State<HttpState>) -> impl IntoResponse {
    match state.source.snapshot() {
        Some(snapshot) if snapshot.at.elapsed() > ALIVE => {
            let stuck = format!("the last reconcile was {:?} ago\n", snapshot.at.elapsed());
            (StatusCode::SERVICE_UNAVAILABLE, stuck)
        }
        // The first reconcile may take its time; the process is alive.
        _ => (StatusCode::OK, "ok\n".into()),
    }
}

async fn readyz(State(state): State<HttpState>) -> impl IntoResponse {
    let reasons = not_ready(state.source.snapshot().as_deref());
    if reasons.is_empty() {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    (
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{}\n", reasons.join("\n")),
    )
}

async fn scrape(State(state): State<HttpState>) -> impl IntoResponse {
    let status = state.source.status().await;
    let snapshot = state.source.snapshot();
    let (Some((status, report)), Some(snapshot)) = (status, snapshot) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "starting\n").into_response();
    };
    match metrics::encode(&status, &snapshot.stats, &report) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")).into_response(),
    }
}
