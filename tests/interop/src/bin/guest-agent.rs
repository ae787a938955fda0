//! The agent in the virtual machine: runs the commands it is sent. See the library's `protocol`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use warren_guest::CONTROL_GUEST;
use warren_interop::protocol::{Answer, PORT, Request};

/// How often a running command and its client are looked at.
const LOOK: Duration = Duration::from_millis(5);

fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind((CONTROL_GUEST, PORT)).context("listen for commands")?;
    println!("the agent is ready");
    for stream in listener.incoming() {
        let stream = stream.context("accept a command")?;
        std::thread::spawn(move || {
            if let Err(e) = serve(stream) {
                println!("agent: {e:#}");
            }
        });
    }
    Ok(())
}

fn serve(stream: TcpStream) -> anyhow::Result<()> {
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let request: Request = serde_json::from_str(&line).context("read a request")?;
    if let Some(answer) = run(&request, &stream)? {
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        (&stream).write_all(&line)?;
    }
    Ok(())
}

/// None when the client went away before the command's end.
fn run(request: &Request, client: &TcpStream) -> anyhow::Result<Option<Answer>> {
    let (program, arguments) = request.argv.split_first().context("an empty command")?;
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(e) => {
            return Ok(Some(Answer {
                code: Some(127),
                stdout: String::new(),
                stderr: format!("cannot start {program}: {e}"),
            }));
        }
    };
    let out = collect(child.stdout.take());
    let err = collect(child.stderr.take());
    client.set_read_timeout(Some(LOOK))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        // Nothing more is ever sent, so the end of the stream is the client's farewell.
        if let Ok(0) = (&*client).read(&mut [0]) {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
    };
    let text = |thread: std::thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    Ok(Some(Answer {
        code: status.code(),
        stdout: text(out),
        stderr: text(err),
    }))
}

fn collect(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is all there is to show.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}
