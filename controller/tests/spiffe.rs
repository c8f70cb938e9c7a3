//! Certificates from elsewhere: the controller follows a SPIFFE Workload API or files, and a node's stream outlives the
//! certificates it began with. The Workload API is the testbed's; controller, sources and TLS are the real ones.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

mod process;

use std::{
    ffi::OsString,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bulkhead_identity::{
    Identity, Source, Trust, dial, follow,
    proof::{self, Binding},
};
use bulkhead_proto::{
    PROTOCOL_VERSION,
    spiffe::Peer,
    v1::{
        Announcement, Certificates, ControllerMessage, Hello, NodeMessage, controller_message, node_message::Message,
        node_service_client::NodeServiceClient,
    },
};
use bulkhead_testbed::workload_api::{Authority, Svid, WorkloadApi};
use hyper_util::rt::TokioIo;
use process::{Controller, DEADLINE};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tonic::{
    Streaming,
    transport::{Endpoint, Uri},
};

const DOMAIN: &str = "test.example";
const CONTROLLER: &str = "spiffe://test.example/controller";
const N1: &str = "spiffe://test.example/node/n1";
const HOUR: Duration = Duration::from_hours(1);

fn arguments(folder: &Path, more: &[String]) -> Vec<OsString> {
    let manifests = folder.join("manifests");
    fs::create_dir(&manifests).unwrap();
    let mut arguments = vec!["--manifests".into(), manifests.into_os_string()];
    arguments.extend(["--trust-domain", DOMAIN].map(Into::into));
    arguments.extend(more.iter().map(Into::into));
    arguments
}

/// A controller whose Workload API gives it this.
fn start(svid: Svid) -> (Controller, WorkloadApi) {
    let mut api = None;
    let controller = Controller::start(|folder| {
        let socket = folder.join("workload.sock");
        let serving = WorkloadApi::serve(&socket).unwrap();
        serving.give(vec![svid]);
        api = Some(serving);
        let endpoint = format!("unix://{}", socket.display());
        arguments(
            folder,
            &[
                "--certificates=spiffe".into(),
                format!("--spiffe-endpoint-socket={endpoint}"),
            ],
        )
    });
    (controller, api.unwrap())
}

/// The node's identity as its source has it.
fn identity(svid: &Svid, id: &Peer) -> Identity {
    let trust = Trust::new(DOMAIN.parse().unwrap(), [CertificateDer::from(svid.bundle.as_slice())]).unwrap();
    let key = PrivatePkcs8KeyDer::from(svid.x509_svid_key.clone());
    Identity::new(vec![svid.x509_svid.clone().into()], key.into(), trust, id).unwrap()
}

fn node(name: &str) -> Peer {
    Peer::Node(name.to_owned())
}

/// A node's open stream.
struct Open {
    messages: mpsc::Sender<NodeMessage>,
    answers: Streaming<ControllerMessage>,
    binding: Binding,
}

impl Open {
    /// Opens the stream of node n1 over its own connection.
    async fn new(address: &str, identity: &Identity) -> Result<Self, String> {
        let config = dial::config(identity.trust(), Some(identity)).unwrap();
        let binding = Arc::new(Mutex::new(None));
        let (address, done) = (address.to_owned(), binding.clone());
        let connect = tower::service_fn(move |_: Uri| {
            let (config, address, done) = (config.clone(), address.clone(), done.clone());
            async move {
                let stream = dial::dial(config, &address).await?;
                *done.lock().unwrap() = Some(Binding::of(stream.get_ref().1).unwrap());
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        });
        let channel = Endpoint::from_static("http://controller")
            .connect_with_connector(connect)
            .await;
        let (messages, stream) = mpsc::channel(4);
        let hello = Hello {
            node: "n1".into(),
            protocol: PROTOCOL_VERSION,
            ..Hello::default()
        };
        messages.send(message(Message::Hello(hello))).await.unwrap();
        let mut client = NodeServiceClient::new(channel.map_err(|error| format!("{error:?}"))?);
        let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
        let mut answers = client
            .connect(stream)
            .await
            .map_err(|status| status.to_string())?
            .into_inner();
        let welcome = answers.message().await.map_err(|status| status.to_string())?;
        let Some(controller_message::Message::Welcome(welcome)) = welcome.and_then(|welcome| welcome.message) else {
            return Err("no welcome".to_owned());
        };
        assert!(welcome.takes_certificates);
        let binding = binding.lock().unwrap().clone().unwrap();
        Ok(Self {
            messages,
            answers,
            binding,
        })
    }

    async fn show(&self, certificates: Certificates) {
        self.messages
            .send(message(Message::Certificates(certificates)))
            .await
            .unwrap();
    }

    /// Asks something, and waits for the answer: the stream is at work.
    async fn answers(&mut self) {
        let announcement = Announcement::default();
        self.messages
            .send(message(Message::Announcement(announcement)))
            .await
            .unwrap();
        let asked = async {
            loop {
                let answer = self.answers.message().await.unwrap().unwrap().message;
                if let Some(controller_message::Message::AnnouncementResult(_)) = answer {
                    return;
                }
            }
        };
        timeout(DEADLINE, asked).await.unwrap();
    }

    /// Waits until the controller ends the stream.
    async fn ends(mut self) {
        let ended = async { while let Ok(Some(_)) = self.answers.message().await {} };
        timeout(DEADLINE, ended).await.unwrap();
    }
}

fn message(message: Message) -> NodeMessage {
    NodeMessage { message: Some(message) }
}

/// Makes what is shown on a connection.
type Worse<'a> = Box<dyn Fn(&Binding) -> Certificates + 'a>;

/// Waits for a moment of the clock.
async fn passed(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        tokio::time::sleep(left).await;
    }
}

/// Waits for the source's next identity.
async fn next(newest: &mut watch::Receiver<Option<Identity>>) -> Identity {
    timeout(DEADLINE, newest.changed()).await.unwrap().unwrap();
    newest.borrow_and_update().clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_stream_outlives_its_certificates() {
    const SHORT: Duration = Duration::from_secs(12);
    let authority = Authority::new(DOMAIN).unwrap();
    let (controller, controllers) = start(authority.svid(CONTROLLER, SHORT).unwrap());
    let socket = controller.folder.path().join("node.sock");
    let nodes = WorkloadApi::serve(&socket).unwrap();
    let mut newest = follow(Source::Workload(socket), node("n1"), DOMAIN.parse().unwrap());
    nodes.give(vec![authority.svid(N1, SHORT).unwrap()]);
    let first = next(&mut newest).await;
    let mut stream = Open::new(&controller.address, &first).await.unwrap();
    let mut last = first.clone();
    let mut rotations = 0;
    // Both ends are renewed until the certificates of the handshake are long over.
    while rotations < 3 || SystemTime::now() <= first.not_after() + Duration::from_secs(1) {
        controller.forget_log();
        controllers.give(vec![authority.svid(CONTROLLER, SHORT).unwrap()]);
        nodes.give(vec![authority.svid(N1, SHORT).unwrap()]);
        last = next(&mut newest).await;
        stream.show(proof::show(&last, &stream.binding).unwrap()).await;
        controller.logs("showed a newer certificate");
        controller.logs("took a certificate");
        stream.answers().await;
        rotations += 1;
        passed(last.not_after() - SHORT / 2).await;
    }
    stream.answers().await;
    let second = Open::new(&controller.address, &last).await;
    assert!(
        second.is_ok(),
        "the controller shows its newer certificate: {:?}",
        second.err()
    );
    let only = Open::new(&controller.address, &first).await;
    assert!(only.is_err(), "a certificate that is over opens nothing");
    // Who shows no newer one is closed when the last one ends.
    let mut last_stream = second.unwrap();
    controller.forget_log();
    last_stream.answers().await;
    last_stream.ends().await;
    controller.logs("the certificate has ended, and no newer one was shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_on_a_stream_must_be_the_nodes_own_for_this_stream() {
    let authority = Authority::new(DOMAIN).unwrap();
    let (controller, _api) = start(authority.svid(CONTROLLER, HOUR).unwrap());
    let svid = |id: &str| authority.svid(id, HOUR).unwrap();
    let good = identity(&svid(N1), &node("n1"));
    let open = async || Open::new(&controller.address, &good).await.unwrap();
    let elsewhere = open().await.binding;
    let foreign = Authority::new(DOMAIN).unwrap();
    let foreign = identity(&foreign.svid(N1, HOUR).unwrap(), &node("n1"));
    let other = identity(&svid("spiffe://test.example/node/n2"), &node("n2"));
    let newer = identity(&svid(N1), &node("n1"));
    let cases: [(&str, Worse<'_>); 7] = [
        (
            "not made by the newer certificate's key",
            Box::new(|_| proof::show(&newer, &elsewhere).unwrap()),
        ),
        (
            "no authority of trust domain",
            Box::new(|here| proof::show(&foreign, here).unwrap()),
        ),
        (
            "this is the stream of node n1",
            Box::new(|here| proof::show(&other, here).unwrap()),
        ),
        (
            "not made by the newer certificate's key",
            Box::new(|here| Certificates {
                certificates: vec![svid(N1).x509_svid],
                ..proof::show(&newer, here).unwrap()
            }),
        ),
        (
            "field scheme",
            Box::new(|here| Certificates {
                scheme: 0x0201,
                ..proof::show(&newer, here).unwrap()
            }),
        ),
        ("0 certificates", Box::new(|_| Certificates::default())),
        (
            "at most 65536",
            Box::new(|here| Certificates {
                certificates: vec![vec![0; 70_000]],
                ..proof::show(&newer, here).unwrap()
            }),
        ),
    ];
    for (reason, worse) in cases {
        controller.forget_log();
        let stream = open().await;
        let shown = worse(&stream.binding);
        stream.show(shown).await;
        stream.ends().await;
        controller.logs(reason);
        assert!(!controller.log.lock().unwrap().contains("showed a newer"), "{reason}");
    }
    let mut stream = open().await;
    stream.show(proof::show(&newer, &stream.binding).unwrap()).await;
    stream.answers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_goes_takes_its_streams_with_it() {
    let (old, new) = (Authority::new(DOMAIN).unwrap(), Authority::new(DOMAIN).unwrap());
    let with_both = |mut svid: Svid| {
        svid.bundle = [old.certificate(), new.certificate()].concat();
        svid
    };
    let (controller, api) = start(old.svid(CONTROLLER, HOUR).unwrap());
    let before = identity(&old.svid(N1, HOUR).unwrap(), &node("n1"));
    let mut stream = Open::new(&controller.address, &before).await.unwrap();
    let after = identity(&new.svid(N1, HOUR).unwrap(), &node("n1"));
    // Nodes that trust the controller, whatever it thinks of them.
    let early = after.trusting(before.trust().clone());
    assert!(Open::new(&controller.address, &early).await.is_err(), "not trusted yet");
    controller.logs("refused in the TLS handshake");
    // Both are trusted for a while: nobody is cut off.
    controller.forget_log();
    api.give(vec![with_both(old.svid(CONTROLLER, HOUR).unwrap())]);
    controller.logs("authorities=2");
    stream.answers().await;
    api.give(vec![new.svid(CONTROLLER, HOUR).unwrap()]);
    stream.ends().await;
    controller.logs("the authorities have changed");
    let late = before.trusting(after.trust().clone());
    controller.forget_log();
    assert!(
        Open::new(&controller.address, &late).await.is_err(),
        "not trusted any more"
    );
    controller.logs("refused in the TLS handshake");
    assert!(Open::new(&controller.address, &after).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_api_that_is_gone_or_gives_nothing_takes_nothing_away() {
    let authority = Authority::new(DOMAIN).unwrap();
    let (controller, api) = start(authority.svid(CONTROLLER, HOUR).unwrap());
    let good = identity(&authority.svid(N1, HOUR).unwrap(), &node("n1"));
    let mut stream = Open::new(&controller.address, &good).await.unwrap();
    api.deny();
    controller.logs("create a registration entry of spiffe://test.example/controller");
    controller.logs("the certificate we have stays in use");
    api.give(vec![authority.svid("spiffe://test.example/ns/x/sa/y", HOUR).unwrap()]);
    controller.logs("it has spiffe://test.example/ns/x/sa/y for us and not spiffe://test.example/controller");
    drop(api);
    controller.logs("does the SPIFFE agent run on this node");
    stream.answers().await;
    assert!(Open::new(&controller.address, &good).await.is_ok());
    // It comes back, with another certificate.
    controller.forget_log();
    let api = WorkloadApi::serve(&controller.folder.path().join("workload.sock")).unwrap();
    api.give(vec![authority.svid(CONTROLLER, HOUR).unwrap()]);
    controller.logs("took a certificate");
    assert!(Open::new(&controller.address, &good).await.is_ok());
}

fn pem(kind: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&[u8]> = text.as_bytes().chunks(64).collect();
    let text = String::from_utf8(lines.join(&b'\n')).unwrap();
    format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
}

/// Replaces a file at once.
fn replace(folder: &Path, name: &str, text: &str) {
    fs::write(folder.join("new"), text).unwrap();
    fs::rename(folder.join("new"), folder.join(name)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_taken_anew_when_they_change() {
    let authority = Authority::new(DOMAIN).unwrap();
    let write = |folder: &Path, svid: &Svid| {
        replace(folder, "ca.crt", &pem("CERTIFICATE", &svid.bundle));
        replace(folder, "tls.key", &pem("PRIVATE KEY", &svid.x509_svid_key));
        replace(folder, "tls.crt", &pem("CERTIFICATE", &svid.x509_svid));
    };
    let controller = Controller::start(|folder| {
        write(folder, &authority.svid(CONTROLLER, HOUR).unwrap());
        let at = |option: &str, name: &str| format!("{option}={}", folder.join(name).display());
        let files = [
            at("--tls-cert", "tls.crt"),
            at("--tls-key", "tls.key"),
            at("--tls-ca", "ca.crt"),
        ];
        arguments(
            folder,
            &[&["--certificates=files".to_owned()], files.as_slice()].concat(),
        )
    });
    let folder = controller.folder.path();
    let good = identity(&authority.svid(N1, HOUR).unwrap(), &node("n1"));
    // Half of a pair is not used, nor is another's certificate.
    let newer = authority.svid(CONTROLLER, HOUR).unwrap();
    replace(folder, "tls.key", &pem("PRIVATE KEY", &newer.x509_svid_key));
    controller.logs("were they copied from different places?");
    assert!(Open::new(&controller.address, &good).await.is_ok());
    controller.forget_log();
    write(folder, &newer);
    controller.logs("took a certificate");
    controller.forget_log();
    write(folder, &authority.svid(N1, HOUR).unwrap());
    controller.logs("--tls-cert");
    // The newest stream of a node: an older one would end for its sake.
    let mut stream = Open::new(&controller.address, &good).await.unwrap();
    stream.answers().await;
    // Another authority: the stream it does not stand for is over.
    let other = Authority::new(DOMAIN).unwrap();
    write(folder, &other.svid(CONTROLLER, HOUR).unwrap());
    stream.ends().await;
    let after = identity(&other.svid(N1, HOUR).unwrap(), &node("n1"));
    assert!(Open::new(&controller.address, &after).await.is_ok());
}
