//! A SPIFFE Workload API and a SPIFFE authority for tests. The wire is the real one (gRPC over a unix socket, the method and the
//! fields of SPIFFE's specification); behind it is no SPIRE, but what a test puts in. So a test decides when certificates are
//! renewed, withdrawn or of another authority, and how short they live.

use std::{
    convert::Infallible,
    fs,
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context as Poller, Poll},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use futures::Stream;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    codegen::{Body, Service, StdError, http},
    server::{Grpc, NamedService, ServerStreamingService},
    transport::Server,
};
use tonic_prost::ProstCodec;

/// The one method that is served.
const METHOD: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// The specification wants this header on every call.
const HEADER: &str = "workload.spiffe.io";

/// What a caller gets: message `X509SVIDResponse`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Svids {
    /// Certificates with their keys.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<Svid>,
}

/// Message `X509SVID`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Svid {
    /// Whose it is.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// Certificates, DER, leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// PKCS #8, DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Certificates of the trust domain's authorities, DER, one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
}

/// Message `X509SVIDRequest`.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Ask {}

/// What is given out now; `None` = nobody is registered.
type Given = watch::Receiver<Option<Svids>>;

/// A Workload API at a socket; gone with its socket when dropped.
pub struct WorkloadApi {
    given: watch::Sender<Option<Svids>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    socket: PathBuf,
}

impl WorkloadApi {
    /// Serves; nobody is registered yet.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn serve(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("a runtime for the Workload API")?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?
        };
        let (given, receiver) = watch::channel(None);
        let (stop, stopped) = oneshot::channel::<()>();
        let serve = async move {
            let incoming = UnixListenerStream::new(listener);
            let served = Server::builder()
                .add_service(Api(receiver))
                .serve_with_incoming(incoming);
            // At once, with every stream that is open, as when the process is killed.
            tokio::select! {
                _ = served => {}
                _ = stopped => {}
            }
        };
        let thread = std::thread::Builder::new()
            .name("workload-api".to_owned())
            .spawn(move || runtime.block_on(serve))
            .context("a thread for the Workload API")?;
        Ok(Self {
            given,
            stop: Some(stop),
            thread: Some(thread),
            socket: socket.to_owned(),
        })
    }

    /// From now on everyone gets these, at once where a stream is open.
    pub fn give(&self, svids: Vec<Svid>) {
        self.given.send_replace(Some(Svids { svids }));
    }

    /// From now on nobody is registered.
    pub fn deny(&self) {
        self.given.send_replace(None);
    }
}

impl Drop for WorkloadApi {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        drop(self.thread.take().map(JoinHandle::join));
        drop(fs::remove_file(&self.socket));
    }
}

#[derive(Clone)]
struct Api(Given);

impl NamedService for Api {
    const NAME: &'static str = "SpiffeWorkloadAPI";
}

type Answer<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<B> Service<http::Request<B>> for Api
where
    B: Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Answer<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Poller<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move {
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("only X.509 SVIDs").into_http());
            }
            let codec: ProstCodec<Svids, Ask> = ProstCodec::default();
            Ok(Grpc::new(codec).server_streaming(api, request).await)
        })
    }
}

impl ServerStreamingService<Ask> for Api {
    type Response = Svids;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<Svids, Status>> + Send>>;
    type Future = Answer<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        let asked = request.metadata().get(HEADER).is_some_and(|value| value == "true");
        let mut given = self.0.clone();
        given.mark_changed();
        Box::pin(async move {
            if !asked {
                return Err(Status::invalid_argument("security header missing from request"));
            }
            let news = futures::stream::unfold(Some(given), |given| async move {
                let mut given = given?;
                given.changed().await.ok()?;
                let now = given.borrow_and_update().clone();
                Some(match now {
                    Some(svids) => (Ok(svids), Some(given)),
                    None => (Err(Status::permission_denied("no identity issued")), None),
                })
            });
            let stream: Self::ResponseStream = Box::pin(news);
            Ok(Response::new(stream))
        })
    }
}

/// An authority that makes SVIDs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: Vec<u8>,
}

impl Authority {
    /// A new one of a trust domain.
    ///
    /// # Errors
    /// Never with sensible names.
    pub fn new(trust_domain: &str) -> Result<Self> {
        let key = KeyPair::generate().context("a key")?;
        let mut params = CertificateParams::new(Vec::new()).context("parameters")?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "SPIFFE");
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).context("signing the authority")?;
        Ok(Self {
            certificate: certificate.der().to_vec(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Its certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// An SVID as SPIRE makes it (both extended usages, no DNS name), whose bundle is this authority's certificate.
    ///
    /// # Errors
    /// Never with sensible names.
    pub fn svid(&self, id: &str, lifetime: Duration) -> Result<Svid> {
        let key = KeyPair::generate().context("a key")?;
        let now = SystemTime::now();
        let mut params = CertificateParams::new(Vec::new()).context("parameters")?;
        params.not_before = (now - Duration::from_secs(10)).into();
        params.not_after = (now + lifetime).into();
        params.subject_alt_names = vec![uri(id)?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).context("signing")?;
        Ok(Svid {
            spiffe_id: id.to_owned(),
            x509_svid: certificate.der().to_vec(),
            x509_svid_key: key.serialize_der(),
            bundle: self.certificate.clone(),
        })
    }
}

fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(text.try_into().context("a URI")?))
}
