//! Against a server of our own, over TCP and TLS.

use axum::{
    Router,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect},
    routing::get,
};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use rustls::{ServerConfig, pki_types::PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

async fn list(headers: HeaderMap) -> impl IntoResponse {
    if headers.get(IF_NONE_MATCH).is_some_and(|etag| etag == "\"1\"") {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    ([(header::ETAG, "\"1\"")], "192.0.2.1\n").into_response()
}

fn router() -> Router {
    Router::new()
        .route("/list", get(list))
        .route("/moved", get(|| async { Redirect::temporary("/list") }))
        .route("/round", get(|| async { Redirect::temporary("/round") }))
        .route(
            "/plain",
            get(|| async { Redirect::temporary("http://127.0.0.1:1/list") }),
        )
        .route("/latin", get(|| async { vec![0xff_u8, 0xfe] }))
}

/// Serves over TLS with a fresh certificate for 127.0.0.1; the port, and the certificate as PEM.
async fn serve_tls() -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that does not trust us goes away here.
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let service = TowerToHyperService::new(router());
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await,
                );
            });
        }
    });
    (port, made.cert.pem())
}

fn client(pem: &str) -> Client {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authorities.pem");
    std::fs::write(&path, pem).unwrap();
    Client::new(Some(&path)).unwrap()
}

#[tokio::test]
async fn a_server_is_asked_for_news_and_checked() {
    let (port, pem) = serve_tls().await;
    let url = |path: &str| format!("https://127.0.0.1:{port}{path}").parse::<Uri>().unwrap();
    let client = client(&pem);
    let nothing = Version::default();
    let Answer::New(text, version) = client.get(&url("/moved"), &nothing).await.unwrap() else {
        panic!("nothing was held")
    };
    assert_eq!(text, "192.0.2.1\n");
    assert_eq!(client.get(&url("/list"), &version).await.unwrap(), Answer::Same);
    let why = |path: &'static str| {
        let (client, url) = (client.clone(), url(path));
        async move { format!("{:#}", client.get(&url, &Version::default()).await.unwrap_err()) }
    };
    assert!(why("/nowhere").await.contains("404"), "{}", why("/nowhere").await);
    assert!(why("/round").await.contains("redirections"));
    assert!(why("/plain").await.contains("from https to http://127.0.0.1:1"));
    assert!(why("/latin").await.contains("no text"));
    // Another authority: the same name, another key.
    let (_, other) = serve_tls().await;
    let error = super::tests::client(&other)
        .get(&url("/list"), &nothing)
        .await
        .unwrap_err();
    assert!(format!("{error:#}").contains("TLS with 127.0.0.1"), "{error:#}");
}
