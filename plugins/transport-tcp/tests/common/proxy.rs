//! Somebody on the wire.

use super::{PORT, own_ip};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What happens to the next bytes from the primary.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deed {
    Flip,
    Repeat,
    Halve,
}

/// Stands between the primary and the standby at `to`.
pub struct Proxy {
    pub ip: Ipv4Addr,
    next: Arc<Mutex<Option<Deed>>>,
    /// Everything from the primary, by connection.
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Proxy {
    pub fn start(to: Ipv4Addr) -> Proxy {
        let proxy = Proxy { ip: own_ip(), next: Arc::default(), recorded: Arc::default() };
        let listener = TcpListener::bind((proxy.ip, PORT)).unwrap();
        let (next, recorded) = (Arc::clone(&proxy.next), Arc::clone(&proxy.recorded));
        thread::spawn(move || {
            for near in listener.incoming().map(Result::unwrap) {
                let far = TcpStream::connect((to, PORT)).unwrap();
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let (mut back_from, mut back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut back_from, &mut back_to);
                    let _ = back_to.shutdown(Shutdown::Write);
                });
                let (next, recorded) = (Arc::clone(&next), Arc::clone(&recorded));
                let id = {
                    let mut recorded = recorded.lock().unwrap();
                    recorded.push(Vec::new());
                    recorded.len() - 1
                };
                thread::spawn(move || forward(near, far, &next, |b| recorded.lock().unwrap()[id].extend(b)));
            }
        });
        proxy
    }

    pub fn arm(&self, deed: Deed) {
        *self.next.lock().unwrap() = Some(deed);
    }

    /// How many there have been.
    pub fn connections(&self) -> usize {
        self.recorded.lock().unwrap().len()
    }

    pub fn recorded(&self, connection: usize) -> Vec<u8> {
        self.recorded.lock().unwrap()[connection].clone()
    }
}

fn forward(mut near: TcpStream, mut far: TcpStream, next: &Mutex<Option<Deed>>, record: impl Fn(&[u8])) {
    let mut buf = vec![0; 1 << 16];
    loop {
        let n = match near.read(&mut buf) {
            Ok(0) | Err(_) => break,
            Ok(n) => n,
        };
        let bytes = &mut buf[..n];
        record(bytes);
        let deed = next.lock().unwrap().take();
        let sent = match deed {
            None => far.write_all(bytes),
            Some(Deed::Flip) => {
                bytes[n - 1] ^= 1;
                far.write_all(bytes)
            }
            Some(Deed::Repeat) => far.write_all(bytes).and_then(|()| far.write_all(bytes)),
            Some(Deed::Halve) => {
                let _ = far.write_all(&bytes[..n / 2]);
                // A reset, as from a host that knows nothing of the connection. After a mere end the primary could go on
                // sending into what this end will never read.
                let _ = rustix::net::connect_unspec(&near);
                break;
            }
        };
        if sent.is_err() {
            break;
        }
    }
    let _ = far.shutdown(Shutdown::Write);
    let _ = near.shutdown(Shutdown::Both);
}
