//! A mutating webhook of the tests' own, which puts a container in front of a pod's others.

use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Full};
use hyper::Response;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::server::Certificate;

pub struct LaterWebhook {
    pub address: SocketAddr,
}

impl LaterWebhook {
    pub fn start(certificate: &Certificate) -> Self {
        let acceptor = certificate.acceptor();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            crate::server::block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let acceptor = acceptor.clone();
                    tokio::spawn(async move {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        // The API server may close the connection as it likes.
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)).await;
                    });
                }
            });
        });
        Self { address }
    }
}

async fn answer(request: hyper::Request<hyper::body::Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let review: Value = serde_json::from_slice(&body).unwrap();
    let containers = review["request"]["object"]["spec"]["containers"].as_array().unwrap();
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    if containers.iter().all(|container| container["name"] != "added-later") {
        let patch =
            json!([{"op": "add", "path": "/spec/containers/0", "value": {"name": "added-later", "image": "later:1"}}]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(crate::cluster::base64(patch.to_string().as_bytes()));
    }
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(Full::from(review.to_string())).unwrap())
}
