//! A way to the API server on which events are lost and told twice.
//!
//! ```text
//!  registry --- HTTP on the loopback ---> Lossy --- TLS, as an admin ---> kube-apiserver
//!           <-- events, spoilt ---------        <-- events --------------
//! ```
//!
//! Lists and writes pass as they are. Of a watch, each event is told twice, and after some of them the
//! connection breaks in the midst of one: that event and those behind it are lost with it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures::{Stream, StreamExt as _, stream};
use kube::Client;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// After how many events of a watch the connection breaks.
const EVENTS: u64 = 7;
/// The largest request that is forwarded, in bytes.
const MAX_REQUEST: usize = 1 << 20;

/// What was done to the events so far.
#[derive(Debug, Default)]
pub struct Spoilt {
    /// Events that were told twice.
    pub repeated: AtomicU64,
    /// Events that were cut in two, with the connection.
    pub cut: AtomicU64,
}

/// The way, as long as this is.
#[derive(Debug)]
pub struct Lossy {
    address: SocketAddr,
    spoilt: Arc<Spoilt>,
    serving: JoinHandle<()>,
}

impl Lossy {
    /// Opens one on the loopback of the calling thread's network namespace, inside a runtime; `client`
    /// is who asks the API server.
    ///
    /// # Errors
    /// The socket's.
    pub async fn start(client: Client) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let spoilt = Arc::<Spoilt>::default();
        let service = Router::new()
            .fallback(forward)
            .with_state((client, spoilt.clone()));
        let serving = tokio::spawn(async move {
            // It ends with the test.
            let _ = axum::serve(listener, service).await;
        });
        Ok(Self {
            address,
            spoilt,
            serving,
        })
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> String {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lossy",
            "clusters": [{"name": "lossy", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "lossy", "user": {}}],
            "contexts": [{"name": "lossy", "context": {"cluster": "lossy", "user": "lossy"}}],
        })
        .to_string()
    }

    /// What was done to the events.
    pub fn spoilt(&self) -> &Spoilt {
        &self.spoilt
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(
    State((client, spoilt)): State<(Client, Arc<Spoilt>)>,
    request: Request,
) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let watches = query.split('&').any(|pair| pair == "watch=true");
    let answer = ask(&client, request).await;
    let Ok(answer) = answer else {
        let mut bad = Response::new(Body::empty());
        *bad.status_mut() = StatusCode::BAD_GATEWAY;
        return bad;
    };
    if !watches || !answer.status().is_success() {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let lines = lines(body);
    Response::from_parts(head, Body::from_stream(spoil(lines, spoilt)))
}

async fn ask(client: &Client, request: Request) -> Result<Response> {
    let (head, body) = request.into_parts();
    let body = to_bytes(body, MAX_REQUEST).await?.to_vec();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut asked = http::Request::builder().method(head.method).uri(path);
    for name in [http::header::CONTENT_TYPE, http::header::ACCEPT] {
        if let Some(value) = head.headers.get(&name) {
            asked = asked.header(name, value);
        }
    }
    let answer = client.send(asked.body(body.into())?).await?;
    let (mut head, body) = answer.into_parts();
    // The body is sent in pieces of its own.
    head.headers.remove(http::header::TRANSFER_ENCODING);
    head.headers.remove(http::header::CONTENT_LENGTH);
    Ok(Response::from_parts(head, Body::new(body)))
}

/// The lines of a body, each with its end.
fn lines(body: Body) -> impl Stream<Item = Vec<u8>> + Send {
    let start = (body.into_data_stream(), Vec::new());
    stream::unfold(start, |(mut body, mut rest): (_, Vec<u8>)| async move {
        loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                return Some((line, (body, rest)));
            }
            rest.extend(body.next().await?.ok()?);
        }
    })
}

fn spoil(
    lines: impl Stream<Item = Vec<u8>> + Send,
    spoilt: Arc<Spoilt>,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    stream::unfold((Box::pin(lines), 0), move |(mut lines, told)| {
        let spoilt = spoilt.clone();
        async move {
            if told > EVENTS {
                return None;
            }
            let line = lines.next().await?;
            if told == EVENTS {
                spoilt.cut.fetch_add(1, Ordering::Relaxed);
                let half = line[..line.len() / 2].to_vec();
                return Some((Ok(half.into()), (lines, told + 1)));
            }
            spoilt.repeated.fetch_add(1, Ordering::Relaxed);
            Some((Ok(line.repeat(2).into()), (lines, told + 1)))
        }
    })
}
