//! Hostile tokens, looked at by a real API server: each is refused with the reason in the log, none is ever written there, and the
//! token of an agent's pod buys its node's certificate.

#![expect(clippy::unwrap_used, reason = "a test that meets a surprise is to fail")]

mod cluster;
mod process;

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use cluster::Cluster;
use process::{Controller, DEADLINE, issue, request};
use rcgen::KeyPair;
use rustls::{
    SignatureScheme,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    version::TLS13,
};
use serde_json::{Value, json};

/// Namespace of the agents.
const OURS: &str = "bulkhead-system";
const AGENT: &str = "bulkhead-agent";
const AUDIENCE: &str = "bulkhead-controller";
const WITHIN: i64 = 600;

async fn service_account(cluster: &Cluster, namespace: &str, name: &str) {
    cluster
        .create(
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}),
        )
        .await;
}

/// Makes a pod of a service account on a node; its uid.
async fn pod(cluster: &Cluster, (namespace, name): (&str, &str), account: &str, node: &str) -> String {
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "c", "image": "i"}]}});
    cluster.create(object).await;
    let made = cluster.get("Pod", namespace, name).await.unwrap();
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

/// Has the API server make a token, as kubelet does for a projected volume.
async fn token(cluster: &Cluster, (namespace, account): (&str, &str), audience: &str, bound: Value) -> String {
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let asked = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [audience], "expirationSeconds": WITHIN, "boundObjectRef": bound}});
    let answer = cluster.request("POST", &path, Some(asked)).await.unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

fn bound(name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid})
}

/// The token with other claims, signed with a key. With the API server's own it is as good as the API server's.
fn forged(token: &str, key: &PrivateKeyDer<'_>, change: impl FnOnce(&mut Value)) -> String {
    let mut parts = token.split('.');
    let (head, claims) = (parts.next().unwrap(), parts.next().unwrap());
    let mut claims: Value = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    change(&mut claims);
    let said = format!("{head}.{}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()));
    let key = rustls::crypto::ring::sign::any_ecdsa_type(key).unwrap();
    let signer = key.choose_scheme(&[SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
    let signature = fixed(&signer.sign(said.as_bytes()).unwrap());
    format!("{said}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// A signature of two numbers as ASN.1 has it, as a token has it: 32 bytes each.
fn fixed(der: &[u8]) -> Vec<u8> {
    let (mut all, mut rest) = (Vec::new(), &der[2..]);
    for _ in 0..2 {
        let number = &rest[2..][..usize::from(rest[1])];
        rest = &rest[2 + number.len()..];
        let digits = &number[number.len().saturating_sub(32)..];
        all.extend(std::iter::repeat_n(0, 32 - digits.len()).chain(digits.iter().copied()));
    }
    all
}

/// What is wrong, a token that is so, and what the log says of it.
type Case = (&'static str, String, &'static str);

/// Tokens the API server makes for others than the agent of node `n1`.
async fn of_others(cluster: &Cluster) -> Vec<Case> {
    for (namespace, account) in [(OURS, "other"), ("shop", AGENT), (OURS, "gone")] {
        service_account(cluster, namespace, account).await;
    }
    let ours = (OURS, AGENT);
    let make = async |who: (&str, &str), node: &str, name: &str| {
        let uid = pod(cluster, (who.0, name), who.1, node).await;
        token(cluster, who, AUDIENCE, bound(name, &uid)).await
    };
    let mut cases = vec![
        (
            "of another service account",
            make((OURS, "other"), "n1", "other").await,
            "only \"system:serviceaccount:bulkhead-system:bulkhead-agent\" are agents",
        ),
        (
            "of a service account of that name in another namespace",
            make(("shop", AGENT), "n1", "elsewhere").await,
            "only \"system:serviceaccount:bulkhead-system:bulkhead-agent\" are agents",
        ),
        (
            "of another node's agent",
            make(ours, "n2", "agent-2").await,
            "node n2 asks for a certificate of node n1",
        ),
        (
            "bound to no pod",
            token(cluster, ours, AUDIENCE, Value::Null).await,
            "the token names 0 nodes",
        ),
    ];
    let uid = pod(cluster, (OURS, "agent-1b"), AGENT, "n1").await;
    for audience in ["api", "https://kubernetes.default.svc.cluster.local"] {
        let other = token(cluster, ours, audience, bound("agent-1b", &uid)).await;
        cases.push(("for another audience", other, "is invalid for the target audiences"));
    }
    let deleted = make(ours, "n1", "deleted").await;
    cluster.delete("Pod", OURS, "deleted").await;
    cases.push((
        "of a deleted pod",
        deleted,
        "service account token has been invalidated",
    ));
    let replaced = make(ours, "n1", "replaced").await;
    cluster.delete("Pod", OURS, "replaced").await;
    pod(cluster, (OURS, "replaced"), AGENT, "n1").await;
    cases.push((
        "of a pod whose name another one has now",
        replaced,
        "does not match service account pod ref claim",
    ));
    let orphan = make((OURS, "gone"), "n1", "orphan").await;
    cluster.delete("ServiceAccount", OURS, "gone").await;
    cases.push((
        "of a deleted service account",
        orphan,
        "serviceaccounts \"gone\" not found",
    ));
    cases
}

/// Tokens that nobody made, or that the API server made otherwise: `good` with its signature, or with another.
fn made_up(good: &str, own: &PrivateKeyDer<'_>) -> Vec<Case> {
    let other = KeyPair::generate().unwrap();
    let other = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(other.serialize_der()));
    let now = now();
    let (head, rest) = good.split_once('.').unwrap();
    let (claims, signature) = rest.split_once('.').unwrap();
    let no_algorithm = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let second_node = forged(good, own, |claims| {
        claims["kubernetes.io"]["node"]["name"] = json!("n2");
    });
    let (_, second_node) = second_node.split_once('.').unwrap();
    let (second_node, _) = second_node.split_once('.').unwrap();
    vec![
        ("that is none", "let me in".to_owned(), "does not accept the token"),
        ("that is empty", String::new(), "neither a certificate nor a token"),
        (
            "without a signature",
            format!("{head}.{claims}."),
            "error in cryptographic primitive",
        ),
        (
            "that asks not to be checked",
            format!("{no_algorithm}.{claims}."),
            "error in cryptographic primitive",
        ),
        (
            "with another one's claims under its signature",
            format!("{head}.{second_node}.{signature}"),
            "error in cryptographic primitive",
        ),
        (
            "signed with another key",
            forged(good, &other, |_| {}),
            "error in cryptographic primitive",
        ),
        (
            "that is over",
            forged(good, own, |claims| {
                claims["iat"] = json!(now - 2 * WITHIN);
                claims["nbf"] = json!(now - 2 * WITHIN);
                claims["exp"] = json!(now - WITHIN);
            }),
            "service account token has expired",
        ),
        (
            "that has not begun",
            forged(good, own, |claims| claims["nbf"] = json!(now + WITHIN)),
            "is not valid yet",
        ),
        (
            "of another issuer",
            forged(good, own, |claims| claims["iss"] = json!("https://evil.example")),
            "does not accept the token",
        ),
        (
            "of a pod that never was",
            forged(good, own, |claims| {
                *claims.pointer_mut("/kubernetes.io/pod/name").unwrap() = json!("never");
            }),
            "service account token has been invalidated",
        ),
    ]
}

fn now() -> i64 {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// The key that the API server signs tokens with.
fn signing_key(folder: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(folder.join("pki/sa.key")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_tokens_are_refused_with_a_reason() {
    let Some(cluster) = Cluster::start().await else { return };
    for namespace in [OURS, "shop"] {
        cluster.namespace(namespace).await;
    }
    for node in ["n1", "n2"] {
        cluster
            .create(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}))
            .await;
    }
    service_account(&cluster, OURS, AGENT).await;
    let uid = pod(&cluster, (OURS, "agent-1"), AGENT, "n1").await;
    let good = token(&cluster, (OURS, AGENT), AUDIENCE, bound("agent-1", &uid)).await;
    let arguments = cluster.arguments();
    let controller = Controller::start(|_| arguments);
    let key = KeyPair::generate().unwrap();
    let ask = async |token: &str| {
        let channel = controller.channel(None, &TLS13).await.unwrap();
        tokio::time::timeout(DEADLINE, issue(channel, "n1", token, request(&key)))
            .await
            .expect("an answer")
    };

    let own = signing_key(cluster.folder());
    let mut cases = of_others(&cluster).await;
    cases.extend(made_up(&good, &own));
    assert!(cases.len() >= 15);
    for (what, token, reason) in &cases {
        controller.forget_log();
        let answer = ask(token).await;
        assert!(answer.is_err(), "a token {what} bought a certificate");
        controller.logs(reason);
        let log = controller.log.lock().unwrap();
        assert!(!log.contains("issued"), "{what}: {log}");
        assert!(
            token.len() < 20 || !log.contains(token.as_str()),
            "{what}: it is in the log"
        );
    }
    let answer = ask(&"x".repeat(20_000)).await;
    assert!(
        answer.as_ref().is_err_and(|error| error.contains("longer than")),
        "an endless one: {answer:?}"
    );

    let issued = ask(&good).await.expect("the agent of n1 gets its certificate");
    assert_eq!(issued.certificates.len(), 1);
    // What was made up above was refused for what it says, not for how it was made.
    ask(&forged(&good, &own, |_| {}))
        .await
        .expect("signed with the API server's key");
}
