//! Hostile nodes: certificates, tokens and connections that are not what they must be. Each is refused, with the reason in
//! the log; the node that is what it says is served.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that meets a surprise is to fail"
)]

mod process;

use std::{
    io::Read as _,
    net::TcpStream as StdStream,
    path::Path,
    time::{Duration, SystemTime},
};

use bulkhead_proto::{
    PROTOCOL_VERSION,
    v1::{
        ControllerMessage, Hello, NodeMessage, ReplicaReport, node_message::Message,
        node_service_client::NodeServiceClient, replica_service_client::ReplicaServiceClient,
    },
};
use process::{Controller, Credentials, DEADLINE, issue, node, request, signed, uri};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Extended, IsCa, KeyPair, KeyUsagePurpose as Usage,
    SanType,
};
use rustls::{
    SupportedProtocolVersion,
    pki_types::CertificateDer,
    version::{TLS12, TLS13},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming, transport::Channel};

/// The real controller, of a trust domain of its own.
fn start() -> Controller {
    Controller::start(|folder| {
        let manifests = folder.join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let mut arguments = vec!["--manifests".into(), manifests.into_os_string()];
        arguments.extend(["--trust-domain", "test.example"].map(Into::into));
        arguments
    })
}

/// An open node stream.
type Open = (mpsc::Sender<NodeMessage>, Streaming<ControllerMessage>);

/// Opens the node stream and takes the first answer.
async fn connect(channel: Channel, name: &str) -> Result<Open, Status> {
    let hello = NodeMessage {
        message: Some(Message::Hello(Hello {
            node: name.to_owned(),
            protocol: PROTOCOL_VERSION,
            ..Hello::default()
        })),
    };
    let (sender, messages) = mpsc::channel(1);
    sender.send(hello).await.unwrap();
    let messages = tokio_stream::wrappers::ReceiverStream::new(messages);
    let mut answers = NodeServiceClient::new(channel).connect(messages).await?.into_inner();
    match answers.message().await? {
        Some(_) => Ok((sender, answers)),
        None => Err(Status::aborted("the stream ended")),
    }
}

/// Tries to get node `n1`'s state; true when it comes.
async fn is_served(
    controller: &Controller,
    credentials: Option<&Credentials>,
    version: &'static SupportedProtocolVersion,
) -> bool {
    let Ok(channel) = controller.channel(credentials, version).await else {
        return false;
    };
    tokio::time::timeout(DEADLINE, connect(channel, "n1"))
        .await
        .expect("an answer")
        .is_ok()
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
    let controller = start();
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
async fn what_nodes_hold_is_believed_of_controllers_only() {
    let controller = start();
    let authority = controller.authority();
    let good = signed(&node(N1), &authority);
    for (credentials, reason) in [
        (Some(&good), "node n1 reports as if it were a controller"),
        (None, "who reports has no certificate"),
    ] {
        controller.forget_log();
        let channel = controller.channel(credentials, &TLS13).await.unwrap();
        let reports = tokio_stream::iter([ReplicaReport::default()]);
        let refused = ReplicaServiceClient::new(channel).report(reports).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::Unauthenticated, "{refused}");
        controller.logs(reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_given_to_who_may_have_them() {
    let controller = start();
    let good = signed(&node(N1), &controller.authority());
    let key = KeyPair::generate().unwrap();
    let mut broken = request(&key);
    *broken.last_mut().unwrap() ^= 1;
    let ask = async |credentials: Option<&Credentials>, name: &str, token: &str, csr: Vec<u8>| {
        let channel = controller.channel(credentials, &TLS13).await.unwrap();
        issue(channel, name, token, csr).await
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
    let certificate = issued.certificates.first().unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).unwrap();
    let begins = u64::try_from(parsed.validity().not_before.timestamp()).unwrap();
    let four_minutes_ago = SystemTime::now() - Duration::from_mins(4);
    assert!(
        SystemTime::UNIX_EPOCH + Duration::from_secs(begins) < four_minutes_ago,
        "a node whose clock is behind takes it"
    );
    let renewed = (
        CertificateDer::from(issued.certificates.into_iter().next().unwrap()),
        key,
    );
    assert!(
        is_served(&controller, Some(&renewed), &TLS13).await,
        "the renewed certificate"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_certificate() {
    let controller = start();
    let mut params = node(N1);
    params.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    let short = signed(&params, &controller.authority());
    let channel = controller.channel(Some(&short), &TLS13).await.unwrap();
    let (_sender, mut stream) = connect(channel, "n1").await.expect("as long as it is valid");
    let ending = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(DEADLINE, ending).await.expect("its end");
    // Certificates count whole seconds.
    let end = SystemTime::from(params.not_after) - Duration::from_secs(1);
    assert!(SystemTime::now() >= end, "not before");
    controller.logs("certificate");
    // Its last second is over.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(
        !is_served(&controller, Some(&short), &TLS13).await,
        "and it opens no other"
    );
}

#[test]
fn what_is_no_tls_is_refused_and_holds_up_nobody() {
    let controller = start();
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
    let controller = start();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = controller.folder.path().join("ca");
    assert_eq!((mode(&folder), mode(&folder.join("ca.key"))), (0o700, 0o600));
    assert!(!controller.log.lock().unwrap().contains("PRIVATE KEY"));
}
