//! The real controller as a process of its own, its log kept, and a way to it over TLS.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]
#![allow(dead_code, reason = "each file of tests uses a part of it")]

use std::{
    ffi::OsString,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bulkhead_proto::{
    spiffe::CONTROLLER_NAME,
    v1::{IssueRequest, IssueResponse, bootstrap_service_client::BootstrapServiceClient},
};
use hyper_util::rt::TokioIo;
use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose as Extended, IsCa, Issuer, KeyPair, KeyUsagePurpose as Usage, SanType,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

/// Far more than anything here takes; only a failing test waits so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A loopback port nobody listens on now, with its address.
pub(crate) fn free() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// The real controller, its log kept.
pub(crate) struct Controller {
    child: Child,
    pub(crate) log: Arc<Mutex<String>>,
    /// Where nodes connect.
    pub(crate) address: String,
    pub(crate) folder: tempfile::TempDir,
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Controller {
    /// One of these arguments beside those about where it listens; its own authority, if it is to have one, is kept in its folder.
    pub(crate) fn start(arguments: impl FnOnce(&Path) -> Vec<OsString>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let address = free();
        let arguments = arguments(folder.path());
        let elsewhere = |argument: &OsString| argument.to_string_lossy().starts_with("--certificates=");
        let authority = if arguments.iter().any(elsewhere) {
            Vec::new()
        } else {
            vec!["--ca-dir".to_owned(), at("ca")]
        };
        let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-controller"))
            .args(["--listen", &format!("unix:{}", at("socket"))])
            .args(["--listen-tls", &address])
            .args(authority)
            .args(arguments)
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, kept) = (BufReader::new(child.stderr.take().unwrap()).lines(), log.clone());
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let controller = Self {
            child,
            log,
            address,
            folder,
        };
        controller.logs("serving nodes over TLS");
        controller
    }

    /// Waits until the log says something.
    pub(crate) fn logs(&self, text: &str) {
        let begin = Instant::now();
        while !self.log.lock().unwrap().contains(text) {
            assert!(
                begin.elapsed() < DEADLINE,
                "no {text:?} in the log:\n{}",
                self.log.lock().unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn forget_log(&self) {
        self.log.lock().unwrap().clear();
    }

    /// Certificate and key of its authority, PEM.
    pub(crate) fn authority(&self) -> (String, String) {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join("ca").join(name)).unwrap();
        (read("ca.crt"), read("ca.key"))
    }

    /// A channel to it.
    pub(crate) async fn channel(
        &self,
        credentials: Option<&Credentials>,
        version: &'static SupportedProtocolVersion,
    ) -> Result<Channel, String> {
        channel(&self.address, &self.authority().0, credentials, version).await
    }
}

/// A node as it should be, to be made worse.
pub(crate) fn node(id: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.not_before = (SystemTime::now() - Duration::from_mins(1)).into();
    params.not_after = (SystemTime::now() + Duration::from_hours(1)).into();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Usage::DigitalSignature];
    params.extended_key_usages = vec![Extended::ClientAuth];
    params
}

pub(crate) fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// A client's certificate and key.
pub(crate) type Credentials = (CertificateDer<'static>, KeyPair);

/// Signs with an authority's certificate and key.
pub(crate) fn signed(params: &CertificateParams, (certificate, key): &(String, String)) -> Credentials {
    let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key).unwrap()).unwrap();
    let own = KeyPair::generate().unwrap();
    (params.signed_by(&own, &issuer).unwrap().der().clone(), own)
}

/// A channel to a controller whose authority is known.
pub(crate) async fn channel(
    address: &str,
    authority: &str,
    credentials: Option<&Credentials>,
    version: &'static SupportedProtocolVersion,
) -> Result<Channel, String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.as_bytes()).unwrap())
        .unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![certificate.clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (connector, address) = (TlsConnector::from(Arc::new(config)), address.to_owned());
    let connect = tower::service_fn(move |_: Uri| {
        let (connector, address) = (connector.clone(), address.clone());
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?;
            connector
                .connect(ServerName::try_from(CONTROLLER_NAME).unwrap(), stream)
                .await
                .map(TokioIo::new)
        }
    });
    let channel = Endpoint::from_static("http://controller")
        .connect_with_connector(connect)
        .await;
    channel.map_err(|error| format!("{error:?}"))
}

/// A request to sign a key.
pub(crate) fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::new(Vec::new())
        .unwrap()
        .serialize_request(key)
        .unwrap()
        .der()
        .to_vec()
}

/// Asks for a node's certificate; the answer, or what was said against it.
pub(crate) async fn issue(
    channel: Channel,
    node: &str,
    token: &str,
    request: Vec<u8>,
) -> Result<IssueResponse, String> {
    let request = IssueRequest {
        node: node.to_owned(),
        token: token.to_owned(),
        certificate_signing_request: request,
    };
    let answer = BootstrapServiceClient::new(channel).issue(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| status.message().to_owned())
}
