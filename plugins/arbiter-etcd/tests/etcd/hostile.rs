//! Servers that are no etcd, and a wire that loses answers.

use crate::cluster::own_ip;
use crate::sides::{LONG, arbiter, cluster, session};
use aventine_api::{ErrorCode, Side, Verdict};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Reads one request, headers and body.
fn read_request(stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let (mut request, mut len) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        request.extend_from_slice(line.as_bytes());
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            len = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; len];
    reader.read_exact(&mut body)?;
    request.extend(body);
    Ok(request)
}

/// Serves each connection by `serve`, on a thread of its own that lives until the client has had enough.
fn server(serve: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind((own_ip(), 2379)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream.unwrap()));
        }
    });
    endpoint
}

/// Answers every request with these bytes and closes.
fn says(answer: impl Into<String>) -> String {
    let answer = answer.into();
    server(move |mut stream| {
        read_request(&stream)?;
        stream.write_all(answer.as_bytes())
    })
}

/// Answers every request with `head`, and then `piece` without end, each after `pause`.
fn drips(head: &'static str, piece: &'static str, pause: Duration) -> String {
    server(move |mut stream| {
        read_request(&stream)?;
        stream.write_all(head.as_bytes())?;
        loop {
            stream.write_all(piece.as_bytes())?;
            thread::sleep(pause);
        }
    })
}

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

fn claim(endpoints: &[String]) -> Result<Verdict, aventine_api::PluginError> {
    arbiter(&format!("endpoints = {endpoints:?}"), Side::Primary).claim(session(1), Side::Primary)
}

const SLOWLY: Duration = Duration::from_millis(20);

#[test]
fn servers_that_are_no_etcd_are_errors_and_hide_no_other() {
    let cluster = cluster(1);
    let endless = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let piece: &str = Box::leak(format!("1000\r\n{}\r\n", "x".repeat(0x1000)).into_boxed_str());
    let servers = [
        says("SSH-2.0-OpenSSH_9.2p1\r\n"),
        says(ok("It works!")),
        says(ok(r#"{"header":{},"succeeded":true}"#)),
        says(ok(r#"{"succeeded":true,"responses":[{"response_put":{}},{"response_range":{}}]}"#)),
        says("HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{\"responses\":["),
        says("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{}"),
        says(
            "HTTP/1.1 503 No\r\nContent-Length: 47\r\n\r\n{\"error\":\"etcdserver: no leader\",\"code\":14}\r\n\r\n",
        ),
        says(format!(
            "HTTP/1.1 307 Moved\r\nLocation: {}/v3/kv/txn\r\nContent-Length: 0\r\n\r\n",
            cluster.endpoint(0)
        )),
        drips(endless, piece, Duration::ZERO),
        drips(endless, "1\r\n \r\n", SLOWLY),
        drips("HTTP/1.1 200 OK\r\n", "X: y\r\n", SLOWLY),
        drips("", "H", SLOWLY),
        server(|_| Ok(())),
        server(|mut stream| stream.read_to_end(&mut Vec::new()).map(drop)),
    ];
    let begun = Instant::now();
    thread::scope(|scope| {
        for endpoint in &servers {
            scope.spawn(move || {
                let error = claim(std::slice::from_ref(endpoint)).unwrap_err();
                assert_eq!(error.code(), ErrorCode::Unavailable);
                assert!(error.to_string().contains(endpoint.as_str()), "{error}");
            });
        }
    });
    for some in servers.chunks(7) {
        // The redirection is not followed, so that nobody has claimed before.
        let error = claim(some).unwrap_err();
        assert!(some.iter().all(|endpoint| error.to_string().contains(endpoint)), "{error}");
    }
    assert!(begun.elapsed() < LONG, "it took {:?}", begun.elapsed());

    let standby = arbiter(&cluster.config(), Side::Standby).claim(session(1), Side::Standby);
    assert_eq!(standby.unwrap(), Verdict::Won, "one of the others has claimed");
    for some in servers.chunks(7) {
        assert_eq!(claim(&[some, &[cluster.endpoint(0)]].concat()).unwrap(), Verdict::Lost);
    }
}

#[test]
fn the_endpoint_that_answered_is_asked_first_from_then_on() {
    let cluster = cluster(1);
    let asked = Arc::new(AtomicBool::new(false));
    let silent = server({
        let asked = Arc::clone(&asked);
        move |mut stream| {
            asked.store(true, Ordering::SeqCst);
            stream.read_to_end(&mut Vec::new()).map(drop)
        }
    });
    let config = format!("endpoints = {:?}", [silent, cluster.endpoint(0)]);
    let mut arbiter = arbiter(&config, Side::Primary);
    arbiter.probe().unwrap();
    assert!(asked.swap(false, Ordering::SeqCst));
    assert_eq!(arbiter.claim(session(1), Side::Primary).unwrap(), Verdict::Won);
    assert!(!asked.load(Ordering::SeqCst));
}

/// Passes requests on to `etcd`; while `swallow` is set, the answers vanish with their connections.
fn proxy(etcd: &str, swallow: &Arc<AtomicBool>) -> String {
    let address = etcd.strip_prefix("http://").unwrap().to_owned();
    let swallow = Arc::clone(swallow);
    server(move |mut near| {
        let request = read_request(&near)?;
        let mut far = TcpStream::connect(&address)?;
        far.write_all(&request)?;
        // One byte of the answer: the transaction has taken effect.
        let mut first = [0];
        far.read_exact(&mut first)?;
        if swallow.load(Ordering::SeqCst) {
            return Ok(());
        }
        near.write_all(&first)?;
        std::io::copy(&mut far, &mut near).map(drop)
    })
}

#[test]
fn a_claim_whose_answer_was_lost_counts() {
    let cluster = cluster(1);
    let swallow = Arc::new(AtomicBool::new(true));
    let lossy = proxy(&cluster.endpoint(0), &swallow);
    let config = format!("endpoints = [{lossy:?}]");
    let mut primary = arbiter(&config, Side::Primary);
    let mut standby = arbiter(&cluster.config(), Side::Standby);
    let error = primary.claim(session(1), Side::Primary).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert_eq!(standby.claim(session(1), Side::Standby).unwrap(), Verdict::Lost);
    // The other way round: the one that never heard an answer has lost.
    assert_eq!(standby.claim(session(2), Side::Standby).unwrap(), Verdict::Won);
    primary.claim(session(2), Side::Primary).unwrap_err();
    swallow.store(false, Ordering::SeqCst);
    assert_eq!(primary.claim(session(1), Side::Primary).unwrap(), Verdict::Won);
    assert_eq!(primary.claim(session(2), Side::Primary).unwrap(), Verdict::Lost);

    // Within one claim: the second endpoint tells what the first one did.
    swallow.store(true, Ordering::SeqCst);
    let both = format!("endpoints = {:?}", [lossy, cluster.endpoint(0)]);
    assert_eq!(arbiter(&both, Side::Primary).claim(session(3), Side::Primary).unwrap(), Verdict::Won);
    assert_eq!(standby.claim(session(3), Side::Standby).unwrap(), Verdict::Lost);
}
