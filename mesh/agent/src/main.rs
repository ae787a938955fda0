//! warren-agent: wires the library to the process.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use warren_agent::config::{
    Config, ConfigError, LogFormat, RegistryKind, Source as ValueSource, Surroundings, load,
};
use warren_agent::dataplane::{self, DeviceReader, UapiDataPlane};
use warren_agent::files;
use warren_agent::host::LinuxHost;
use warren_agent::http::{self, HttpState};
use warren_agent::local::node_uid;
use warren_agent::lock::Lock;
use warren_agent::reconcile::Reconciler;
use warren_agent::registry::{FileRegistry, KubernetesOptions, KubernetesRegistry, RegistryThread};
use warren_agent::run::run;
use warren_agent::status_server::{self, RemoveOnExit, Source};
use warren_agent::tunnel_socket::TunnelSocket;
use warren_agent::uninstall;
use warren_agent::view_files::ViewFiles;
use warren_core::consts::{AGENT_SOCKET, TUNNEL_SOCKET};
use warren_core::files::SavedView;
use warren_netlink::sysctl::Settings;

/// Where Kubernetes puts the token of a pod's service account.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == uninstall::COMMAND)
    {
        return uninstall_cluster(&uninstall::Options::parse_from(std::env::args_os().skip(1)));
    }
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let env: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    let surroundings = Surroundings {
        hostname: hostname.to_string_lossy().into_owned(),
        service_account: Path::new(SERVICE_ACCOUNT_TOKEN).exists(),
    };
    let loaded = match load(std::env::args_os(), &env, &surroundings) {
        Ok(loaded) => loaded,
        Err(ConfigError::CommandLine(e)) => {
            // Help and version are such "errors" too; clap knows where each goes.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(1));
        }
        Err(e) => {
            eprintln!("warren-agent: {e}");
            return ExitCode::from(2);
        }
    };
    init_log(&loaded.config);
    let set = loaded
        .sources
        .iter()
        .filter(|(_, source)| **source != ValueSource::Default);
    let set: Vec<String> = set
        .map(|(key, source)| format!("{key} ({source})"))
        .collect();
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, node = %loaded.config.node_name, set = set.join(", "), "start");
    match start(loaded.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

fn uninstall_cluster(options: &uninstall::Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = runtime
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(uninstall::run(options)));
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("warren-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn init_log(config: &Config) {
    let log = tracing_subscriber::fmt()
        .with_max_level(config.log_level)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().init(),
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    files::make_dir(&config.run_dir, 0o700)?;
    files::make_dir(&config.state_dir, 0o700)?;
    let _lock = Lock::take(&config.run_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .context("start the runtime")?
        .block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let uid = node_uid(&config.state_dir)?;
    let saved = saved_view(&config);
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let tunnel_socket = TunnelSocket(config.run_dir.join(TUNNEL_SOCKET));
    let tunnel = UapiDataPlane::new(config.uapi_dir.join(format!("{}.sock", config.interface)))
        .with_status(tunnel_socket.clone());
    let kind = dataplane::choose(&config);
    let reader = DeviceReader::of(kind, &config, tunnel.clone(), tunnel_socket);
    let data_plane = dataplane::open(kind, &config, tunnel).await?;
    let settings = Settings::below(&config.sysctl_dir);
    let host = LinuxHost::open(config.interface.clone(), settings)?;
    let views = saved.views.clone();
    let reconciler = Reconciler::new(config.clone(), uid, host, data_plane, saved)?;

    let (publisher, snapshots) = watch::channel(None);
    let source = Source {
        config: Arc::new(config.clone()),
        snapshots,
        tunnel: reader.clone(),
    };
    let socket = config.run_dir.join(AGENT_SOCKET);
    let listener =
        status_server::bind(&socket).with_context(|| format!("listen on {}", socket.display()))?;
    let _socket = RemoveOnExit(socket);
    tokio::spawn(status_server::serve(listener, source.clone()));
    if let Some(address) = config.http_listen {
        let bound = TcpListener::bind(address).await;
        let listener = bound.with_context(|| {
            format!("listen on {address}; give http-listen another port, or `off`")
        })?;
        tokio::spawn(http::serve(listener, HttpState { source }));
    }
    let probe = async || reader.get().await.is_ok();
    match config.registry {
        RegistryKind::File => {
            let (dir, name) = (config.registry_dir.clone(), config.node_name.clone());
            let subject = format!("registry directory {}", dir.display());
            let files =
                RegistryThread::start(subject, move || FileRegistry::new(dir, name, &views))
                    .context("start the registry's thread")?;
            run(reconciler, files, probe, publisher, stop).await;
        }
        RegistryKind::Kubernetes => {
            let nodes = KubernetesRegistry::open(KubernetesOptions::of(&config)).await?;
            run(reconciler, nodes, probe, publisher, stop).await;
        }
    }
    tracing::info!("stop; peers, routes and filters stay");
    Ok(())
}

/// The last view; a start without it is slower to protect what it knew, and no more.
fn saved_view(config: &Config) -> SavedView {
    match ViewFiles::new(&config.state_dir).load() {
        Ok(view) => view.unwrap_or_default(),
        Err(e) => {
            tracing::warn!(error = %e, "start without the saved view");
            SavedView::default()
        }
    }
}
