//! Asking the programs in our pods through the API server: a command's output, or an answer of their loopback HTTP.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, AttachParams};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::{Cluster, object::list};

/// Longest time for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Longest answer; a larger one is refused.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// What is kept of a command's complaint.
const COMPLAINT_BYTES_MAX: u64 = 4_096;

/// A pod that let the time pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no answer in {} s", ANSWER_WITHIN.as_secs())]
pub(crate) struct NoAnswer;

impl Cluster {
    /// What a command in a container prints. An error when it fails, with what it complains of.
    pub(crate) async fn run_in(
        &self,
        (namespace, pod, container): (&str, &str, &str),
        command: &[&str],
    ) -> anyhow::Result<Vec<u8>> {
        let doing = || format!("running `{}` in pod {namespace}/{pod}", command.join(" "));
        let run = async {
            let params = AttachParams::default()
                .container(container)
                .stdin(false)
                .stdout(true)
                .stderr(true);
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let mut process = api.exec(pod, command.iter().copied(), &params).await?;
            let (out, err) = (process.stdout(), process.stderr());
            let ended = process.take_status();
            let (mut printed, mut complaint) = (Vec::new(), Vec::new());
            let limit = u64::try_from(ANSWER_BYTES_MAX)?;
            // Both at once: a process whose one pipe is full does not end the other.
            tokio::try_join!(
                async {
                    match out {
                        Some(out) => out.take(limit + 1).read_to_end(&mut printed).await,
                        None => Ok(0),
                    }
                },
                async {
                    match err {
                        Some(err) => err.take(COMPLAINT_BYTES_MAX).read_to_end(&mut complaint).await,
                        None => Ok(0),
                    }
                },
            )?;
            if printed.len() > ANSWER_BYTES_MAX {
                bail!("it prints more than {} MiB", ANSWER_BYTES_MAX >> 20);
            }
            let status = match ended {
                Some(ended) => ended.await,
                None => None,
            };
            match status {
                Some(status) if status.status.as_deref() == Some("Success") => Ok(printed),
                Some(status) => {
                    let complaint = String::from_utf8_lossy(&complaint);
                    let said = status.message.unwrap_or_default();
                    Err(anyhow!("{} {}", said.trim(), complaint.trim()))
                }
                None => Err(anyhow!("the connection ended before the command did")),
            }
        };
        match tokio::time::timeout(ANSWER_WITHIN, run).await {
            Ok(answer) => answer.with_context(doing),
            Err(_) => Err(anyhow::Error::new(NoAnswer).context(doing())),
        }
    }

    /// The body of a page that a pod serves, be it on its loopback address only.
    pub(crate) async fn page_of(&self, namespace: &str, pod: &str, port: u16, path: &str) -> anyhow::Result<Vec<u8>> {
        let doing = || format!("reading {path} from port {port} of pod {namespace}/{pod}");
        let read = async {
            let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let mut forwarder = api.portforward(pod, &[port]).await?;
            let stream = forwarder.take_stream(port).context("the port is not forwarded")?;
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let request = Request::get(path).header(HOST, "localhost");
            let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await;
            let Ok(answer) = answer else {
                // What the API server says of the forwarding tells more than a broken pipe.
                let why = match forwarder.take_error(port) {
                    Some(error) => tokio::time::timeout(Duration::from_secs(1), error).await.ok().flatten(),
                    None => None,
                };
                connection.abort();
                bail!("{}", why.unwrap_or_else(|| "nothing answers there".to_owned()));
            };
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            connection.abort();
            let body = body
                .map_err(|error| anyhow!("the answer breaks off: {error}"))?
                .to_bytes();
            if !status.is_success() {
                bail!("{status}: {}", String::from_utf8_lossy(&body).trim());
            }
            Ok(body.to_vec())
        };
        match tokio::time::timeout(ANSWER_WITHIN, read).await {
            Ok(answer) => answer.with_context(doing),
            Err(_) => Err(anyhow::Error::new(NoAnswer).context(doing())),
        }
    }
}

fn argument<'a>(pod: &'a Value, flag: &str) -> Option<&'a str> {
    list(pod, "/spec/containers/0/args")
        .iter()
        .filter_map(Value::as_str)
        .find_map(|argument| argument.strip_prefix(flag))
}

/// The port of an argument such as `--health-listen=127.0.0.1:9964`.
pub(crate) fn port_of(pod: &Value, flag: &str) -> Option<u16> {
    argument(pod, flag)?.rsplit_once(':')?.1.parse().ok()
}

/// Where the agent's socket is, for the command line that runs beside it.
pub(crate) fn socket_of(pod: &Value) -> Option<String> {
    argument(pod, "--socket=").map(|path| format!("--agent-socket={path}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ports_and_sockets_are_read_from_arguments() {
        let pod =
            json!({"spec": {"containers": [{"args": ["--a", "--health-listen=[::1]:9964", "--socket=/r/a.sock"]}]}});
        assert_eq!(port_of(&pod, "--health-listen="), Some(9964));
        assert_eq!(port_of(&pod, "--metrics-listen="), None);
        assert_eq!(socket_of(&pod).unwrap(), "--agent-socket=/r/a.sock");
    }
}
