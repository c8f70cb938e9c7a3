//! Hostile nodes: certificates, tokens and connections that are not what they must be. Each is refused, with the reason in
//! the log; the node that is what it says is served.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that meets a surprise is to fail"
)]

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpStream as StdStream,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bulkhead_proto::{
    PROTOCOL_VERSION,
    spiffe::CONTROLLER_NAME,
    v1::{
        ControllerMessage, Hello, IssueRequest, NodeMessage, bootstrap_service_client::BootstrapServiceClient,
        node_message::Message, node_service_client::NodeServiceClient,
    },
};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Extended, IsCa, Issuer, KeyPair,
    KeyUsagePurpose as Usage, SanType,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _},
    version::{TLS12, TLS13},
};
use tokio_rustls::TlsConnector;
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};

/// Far more than anything here takes; only a failing test waits so long.
const DEADLINE: Duration = Duration::from_secs(30);

/// The real controller, its log kept.
struct Controller {
    child: Child,
    log: Arc<Mutex<String>>,
    address: String,
    folder: tempfile::TempDir,
}

impl Drop for Controller {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Controller {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(at("manifests")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let mut child = Command::new(env!("CARGO_BIN_EXE_bulkhead-controller"))
            .args([
                "--manifests",
                &at("manifests"),
                "--listen",
                &format!("unix:{}", at("socket")),
            ])
            .args([
                "--listen-tls",
                &address,
                "--ca-dir",
                &at("ca"),
                "--trust-domain",
                "test.example",
            ])
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
    fn logs(&self, text: &str) {
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

    fn forget_log(&self) {
        self.log.lock().unwrap().clear();
    }

    fn authority(&self) -> (String, String) {
        let read = |name: &str| std::fs::read_to_string(self.folder.path().join("ca").join(name)).unwrap();
        (read("ca.crt"), read("ca.key"))
    }
}

/// A node as it should be, to be made worse.
fn node(id: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.not_before = (SystemTime::now() - Duration::from_mins(1)).into();
    params.not_after = (SystemTime::now() + Duration::from_hours(1)).into();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Usage::DigitalSignature];
    params.extended_key_usages = vec![Extended::ClientAuth];
    params
}

fn uri(id: &str) -> SanType {
    SanType::URI(id.try_into().unwrap())
}

/// A client's certificate and key.
type Credentials = (CertificateDer<'static>, KeyPair);

fn signed(params: &CertificateParams, (certificate, key): &(String, String)) -> Credentials {
    let issuer = Issuer::from_ca_cert_pem(certificate, KeyPair::from_pem(key).unwrap()).unwrap();
    let own = KeyPair::generate().unwrap();
    (params.signed_by(&own, &issuer).unwrap().der().clone(), own)
}

async fn channel(
    controller: &Controller,
    credentials: Option<&Credentials>,
    version: &'static SupportedProtocolVersion,
) -> Result<Channel, String> {
    let mut roots = RootCertStore::empty();
    let (authority, _) = controller.authority();
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
    let (connector, address) = (TlsConnector::from(Arc::new(config)), controller.address.clone());
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

/// Opens the node stream; the first answer.
async fn connect(channel: Channel, name: &str) -> Result<ControllerMessage, Status> {
    let hello = NodeMessage {
        message: Some(Message::Hello(Hello {
            node: name.to_owned(),
            protocol: PROTOCOL_VERSION,
            ..Hello::default()
        })),
    };
    let (sender, messages) = tokio::sync::mpsc::channel(1);
    sender.send(hello).await.unwrap();
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut answers = NodeServiceClient::new(channel).connect(messages).await?.into_inner();
    answers
        .message()
        .await?
        .ok_or_else(|| Status::aborted("the stream ended"))
}

/// Tries to get node `n1`'s state; true when it comes.
async fn is_served(
    controller: &Controller,
    credentials: Option<&Credentials>,
    version: &'static SupportedProtocolVersion,
) -> bool {
    let Ok(channel) = channel(controller, credentials, version).await else {
        return false;
    };
    tokio::time::timeout(DEADLINE, connect(channel, "n1"))
        .await
        .expect("an answer")
        .is_ok()
}

fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::new(Vec::new())
        .unwrap()
        .serialize_request(key)
        .unwrap()
        .der()
        .to_vec()
}

const N1: &str = "spiffe://test.example/node/n1";

/// What is wrong, a certificate that is so, and what the log says of it.
#[expect(clippy::too_many_lines, reason = "a table: one case after the other")]
fn hostile(authority: &(String, String)) -> Vec<(&'static str, Credentials, &'static str)> {
    let worse = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = node(N1);
        change(&mut params);
        signed(&params, authority)
    };
    let named = |id: &str| signed(&node(id), authority);
    let hour = Duration::from_hours(1);
    let own = KeyPair::generate().unwrap();
    let self_signed = (node(N1).self_signed(&own).unwrap().der().clone(), own);
    let foreign = {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "Bulkhead authority of test.example");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().pem();
        signed(&node(N1), &(certificate, key.serialize_pem()))
    };
    vec![
        ("signed by itself", self_signed, "refused in the TLS handshake"),
        (
            "signed by an authority of the same name",
            foreign,
            "refused in the TLS handshake",
        ),
        (
            "over",
            worse(&|it| it.not_after = (SystemTime::now() - Duration::from_secs(1)).into()),
            "refused in the TLS handshake",
        ),
        (
            "not begun",
            worse(&|it| it.not_before = (SystemTime::now() + hour).into()),
            "refused in the TLS handshake",
        ),
        (
            "an authority's",
            worse(&|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "refused",
        ),
        (
            "for servers only",
            worse(&|it| it.extended_key_usages = vec![Extended::ServerAuth]),
            "refused",
        ),
        (
            "without extended usage",
            worse(&|it| it.extended_key_usages.clear()),
            "clientAuth is not among",
        ),
        (
            "without key usage",
            worse(&|it| it.key_usages.clear()),
            "digitalSignature is needed",
        ),
        (
            "for encryption only",
            worse(&|it| it.key_usages = vec![Usage::KeyEncipherment]),
            "digitalSignature is not among",
        ),
        (
            "may sign",
            worse(&|it| it.key_usages.push(Usage::KeyCertSign)),
            "it may sign certificates",
        ),
        (
            "may revoke",
            worse(&|it| it.key_usages.push(Usage::CrlSign)),
            "it may sign certificates",
        ),
        (
            "without an identity",
            worse(&|it| it.subject_alt_names.clear()),
            "has 0 URI names",
        ),
        (
            "a DNS name",
            worse(&|it| it.subject_alt_names = vec![SanType::DnsName("n1".try_into().unwrap())]),
            "has 0 URI names",
        ),
        (
            "two identities",
            worse(&|it| it.subject_alt_names.push(uri("spiffe://test.example/node/n2"))),
            "has 2 URI names",
        ),
        (
            "of another trust domain",
            named("spiffe://evil.example/node/n1"),
            "the trust domain is another",
        ),
        (
            "of a longer trust domain",
            named("spiffe://test.example.evil/node/n1"),
            "the trust domain is another",
        ),
        (
            "not SPIFFE",
            named("https://test.example/node/n1"),
            "does not begin with spiffe://",
        ),
        (
            "a workload's",
            named("spiffe://test.example/ns/shop/sa/web"),
            "neither node/NAME nor controller",
        ),
        (
            "a path that climbs",
            named("spiffe://test.example/node/x/../n1"),
            "not the name of a node",
        ),
        (
            "upper case",
            named("spiffe://test.example/node/N1"),
            "not the name of a node",
        ),
        (
            "no name",
            named("spiffe://test.example/node/"),
            "not the name of a node",
        ),
        (
            "a controller's",
            named("spiffe://test.example/controller"),
            "a controller's, not a node's",
        ),
        (
            "another node's",
            named("spiffe://test.example/node/n2"),
            "node n2 asks for the state of node n1",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_certificates_are_refused_with_a_reason() {
    let controller = Controller::start();
    let authority = controller.authority();
    let good = signed(&node(N1), &authority);
    assert!(
        is_served(&controller, Some(&good), &TLS13).await,
        "a node with its own certificate"
    );
    let cases = hostile(&authority);
    assert!(cases.len() >= 15);
    for (what, credentials, reason) in &cases {
        controller.forget_log();
        assert!(
            !is_served(&controller, Some(credentials), &TLS13).await,
            "a certificate {what} was accepted"
        );
        controller.logs(reason);
        assert!(!controller.log.lock().unwrap().contains("node connected"), "{what}");
    }
    controller.forget_log();
    assert!(!is_served(&controller, None, &TLS13).await, "no certificate");
    controller.logs("has no client certificate");
    assert!(!is_served(&controller, Some(&good), &TLS12).await, "TLS 1.2");
    controller.logs("refused in the TLS handshake");
    assert!(
        is_served(&controller, Some(&good), &TLS13).await,
        "and the good one is still served"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_given_to_who_may_have_them() {
    let controller = Controller::start();
    let good = signed(&node(N1), &controller.authority());
    let key = KeyPair::generate().unwrap();
    let mut broken = request(&key);
    *broken.last_mut().unwrap() ^= 1;
    let ask = async |credentials: Option<&Credentials>, name: &str, token: &str, csr: Vec<u8>| {
        let channel = channel(&controller, credentials, &TLS13).await.unwrap();
        let request = IssueRequest {
            node: name.to_owned(),
            token: token.to_owned(),
            certificate_signing_request: csr,
        };
        let answer = BootstrapServiceClient::new(channel).issue(request).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| status.message().to_owned())
    };
    let refused = async |credentials: Option<&Credentials>, name: &str, token: &str, csr: Vec<u8>, reason: &str| {
        let answer = ask(credentials, name, token, csr).await;
        assert!(
            answer.as_ref().is_err_and(|error| error.contains(reason)),
            "{reason:?}: {answer:?}"
        );
    };
    refused(None, "n1", "", request(&key), "no API server to ask").await;
    refused(
        None,
        "n1",
        "eyJhbGciOiJub25lIn0.e30.",
        request(&key),
        "no API server to ask",
    )
    .await;
    refused(
        Some(&good),
        "n2",
        "",
        request(&key),
        "node n1 asks for a certificate of node n2",
    )
    .await;
    refused(Some(&good), "../n1", "", request(&key), "is not the name of a node").await;
    refused(Some(&good), "n1", "", vec![0; 40], "certificate_signing_request").await;
    refused(Some(&good), "n1", "", broken, "certificate_signing_request").await;
    refused(Some(&good), "n1", &"x".repeat(20_000), request(&key), "longer than").await;

    let issued = ask(Some(&good), "n1", "", request(&key)).await.expect("a renewal");
    let renewed = (
        CertificateDer::from(issued.certificates.into_iter().next().unwrap()),
        key,
    );
    assert!(
        is_served(&controller, Some(&renewed), &TLS13).await,
        "the renewed certificate"
    );
}

#[test]
fn what_is_no_tls_is_refused_and_holds_up_nobody() {
    let controller = Controller::start();
    // Silent ones stay open while another is refused.
    let silent: Vec<StdStream> = (0..16)
        .map(|_| StdStream::connect(&controller.address).unwrap())
        .collect();
    let mut plain = StdStream::connect(&controller.address).unwrap();
    std::io::Write::write_all(&mut plain, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    controller.logs("refused in the TLS handshake");
    plain.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut rest = Vec::new();
    drop(plain.read_to_end(&mut rest));
    drop(silent);
}

#[test]
fn the_key_of_the_authority_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let controller = Controller::start();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = controller.folder.path().join("ca");
    assert_eq!((mode(&folder), mode(&folder.join("ca.key"))), (0o700, 0o600));
    assert!(!controller.log.lock().unwrap().contains("PRIVATE KEY"));
}
