//! Asks a URL for a feed: one GET with the `ETag` of last time, bounded in time and size.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{
        ACCEPT, ETAG, HOST, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, LOCATION,
        USER_AGENT,
    },
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// A whole answer takes no longer.
const ANSWER_MAX: Duration = Duration::from_mins(1);
/// A connection takes no longer to be made.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Largest feed: some 4 million lines.
const BYTES_MAX: usize = 64 << 20;
/// Redirections that are followed.
const REDIRECTS_MAX: usize = 4;
/// Where systems keep their authorities.
const SYSTEM: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a server said of the version it gave: sent back, so that it can answer "the same".
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Version {
    etag: Option<HeaderValue>,
    modified: Option<HeaderValue>,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// What we have is what there is.
    Same,
    /// A text and its version.
    New(String, Version),
}

/// Asks over HTTP and HTTPS.
#[derive(Clone)]
pub(crate) struct Client {
    tls: Option<Arc<ClientConfig>>,
}

impl Client {
    /// With the authorities of a file, or the system's; without any, https is refused when it is asked for.
    ///
    /// # Errors
    /// When the named file is no list of certificates.
    pub(crate) fn new(authorities: Option<&Path>) -> Result<Self> {
        let path = match authorities {
            Some(path) => path,
            None => match SYSTEM.iter().map(Path::new).find(|path| path.is_file()) {
                Some(path) => path,
                None => return Ok(Self { tls: None }),
            },
        };
        let mut roots = RootCertStore::empty();
        let certificates = CertificateDer::pem_file_iter(path)
            .with_context(|| format!("--feed-authorities {}", path.display()))?
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("--feed-authorities {}", path.display()))?;
        let (good, _) = roots.add_parsable_certificates(certificates);
        if good == 0 {
            bail!("--feed-authorities {}: holds no certificate", path.display());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .context("choosing TLS versions")?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            tls: Some(Arc::new(config)),
        })
    }

    /// Asks for what is newer than `held`.
    ///
    /// # Errors
    /// No connection, another status than 200 and 304, a text that is too long or not UTF-8, no answer in time.
    pub(crate) async fn get(&self, url: &Uri, held: &Version) -> Result<Answer> {
        match timeout(ANSWER_MAX, self.follow(url, held)).await {
            Ok(answer) => answer,
            Err(_) => bail!("no whole answer within {} s", ANSWER_MAX.as_secs()),
        }
    }

    async fn follow(&self, url: &Uri, held: &Version) -> Result<Answer> {
        let mut url = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.ask(&url, held).await?;
            let status = response.status();
            if status == StatusCode::NOT_MODIFIED {
                return Ok(Answer::Same);
            }
            if status == StatusCode::OK {
                return text(response).await;
            }
            let Some(place) = response.headers().get(LOCATION).filter(|_| status.is_redirection()) else {
                bail!("the server answers {status}");
            };
            let place = place.to_str().context("a redirection to what is no URL")?;
            let next = redirected(&url, place)?;
            if url.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                bail!("a redirection from https to {next}, which anybody on the way could answer");
            }
            url = next;
        }
        bail!("more than {REDIRECTS_MAX} redirections")
    }

    async fn ask(&self, url: &Uri, held: &Version) -> Result<Response<Incoming>> {
        let host = url.host().context("a URL without a host")?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let secure = url.scheme_str() == Some("https");
        let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let connecting = timeout(CONNECT_MAX, TcpStream::connect((bare, port)));
        let stream = match connecting.await {
            Ok(stream) => stream.with_context(|| format!("connecting to {host}:{port}"))?,
            Err(_) => bail!(
                "connecting to {host}:{port}: no answer within {} s",
                CONNECT_MAX.as_secs()
            ),
        };
        let request = request(url, held)?;
        if !secure {
            return send(stream, request).await;
        }
        let config = self.tls.clone().with_context(|| {
            format!(
                "no certificates of authorities on this system ({}); give --feed-authorities",
                SYSTEM.join(", ")
            )
        })?;
        let name = ServerName::try_from(bare.to_owned()).with_context(|| format!("{host} is no name of a server"))?;
        let stream = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .with_context(|| format!("TLS with {host}:{port}"))?;
        send(stream, request).await
    }
}

/// The URL that a redirection leads to; a path is of the same server.
fn redirected(url: &Uri, place: &str) -> Result<Uri> {
    let absolute = if place.starts_with('/') && !place.starts_with("//") {
        let authority = url.authority().map_or_else(String::new, ToString::to_string);
        format!("{}://{authority}{place}", url.scheme_str().unwrap_or("http"))
    } else {
        place.to_owned()
    };
    let next: Uri = absolute.parse().with_context(|| format!("a redirection to {place}"))?;
    match (next.scheme_str(), next.host()) {
        (Some("http" | "https"), Some(_)) => Ok(next),
        _ => bail!("a redirection to {place}, which is neither http nor https"),
    }
}

fn request(url: &Uri, held: &Version) -> Result<Request<Empty<Bytes>>> {
    let authority = url.authority().context("a URL without a host")?;
    let target = url.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::get(target)
        .header(HOST, authority.as_str())
        .header(USER_AGENT, concat!("bulkhead-agent/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "text/plain, */*");
    let mut known = |name: HeaderName, value: &Option<HeaderValue>| {
        if let (Some(value), Some(headers)) = (value, request.headers_mut()) {
            headers.insert(name, value.clone());
        }
    };
    known(IF_NONE_MATCH, &held.etag);
    known(IF_MODIFIED_SINCE, &held.modified);
    request.body(Empty::new()).context("making the request")
}

async fn send<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("speaking HTTP")?;
    // Ends with the response's body, or when that is dropped.
    drop(tokio::spawn(connection));
    sender.send_request(request).await.context("asking")
}

async fn text(response: Response<Incoming>) -> Result<Answer> {
    let header = |name: HeaderName| response.headers().get(name).cloned();
    let version = Version {
        etag: header(ETAG),
        modified: header(LAST_MODIFIED),
    };
    let body = match Limited::new(response.into_body(), BYTES_MAX).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => bail!("the text broke off, or is longer than {BYTES_MAX} bytes: {error}"),
    };
    let text = String::from_utf8(body.into()).context("what came is no text")?;
    Ok(Answer::New(text, version))
}

#[cfg(test)]
mod tests;
