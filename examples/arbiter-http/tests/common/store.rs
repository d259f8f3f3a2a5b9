//! A small HTTP store, honest or not.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

/// Runs until the process ends.
#[derive(Clone)]
pub(crate) struct Store {
    pub(crate) address: SocketAddr,
    pub(crate) objects: Arc<Mutex<HashMap<String, String>>>,
    /// Makes an object again that is there.
    pub(crate) ignores_conditions: Arc<AtomicBool>,
    /// Does what it is asked, and closes the connection without an answer.
    pub(crate) loses_answers: Arc<AtomicBool>,
}

impl Store {
    pub(crate) fn start(listener: TcpListener) -> Store {
        let store = Store {
            address: listener.local_addr().unwrap(),
            objects: Arc::default(),
            ignores_conditions: Arc::default(),
            loses_answers: Arc::default(),
        };
        let serving = store.clone();
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let store = serving.clone();
                // A client that goes away in the middle is its own affair.
                thread::spawn(move || store.serve(socket));
            }
        });
        store
    }

    fn serve(&self, socket: TcpStream) -> io::Result<()> {
        let mut input = BufReader::new(&socket);
        let (mut first, mut length, mut conditional) = (String::new(), 0, false);
        input.read_line(&mut first)?;
        loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            match line.trim().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().unwrap(),
                Some(("If-None-Match", "*")) => conditional = true,
                Some(_) => {}
                None => break,
            }
        }
        let mut content = vec![0; length];
        input.read_exact(&mut content)?;
        let words: Vec<_> = first.split(' ').collect();
        let (status, answer) =
            self.answer(words[0], words[1], conditional, String::from_utf8(content).unwrap());
        if !self.loses_answers.load(Ordering::SeqCst) {
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", answer.len());
            (&socket).write_all((head + &answer).as_bytes())?;
        }
        Ok(())
    }

    fn answer(&self, method: &str, path: &str, conditional: bool, content: String) -> (&str, String) {
        let mut objects = self.objects.lock().unwrap();
        match (method, objects.get(path)) {
            ("GET", Some(content)) => ("200 OK", content.clone()),
            ("GET", None) => ("404 Not Found", String::new()),
            (_, Some(_)) if conditional && !self.ignores_conditions.load(Ordering::SeqCst) => {
                ("412 Precondition Failed", String::new())
            }
            _ => {
                objects.insert(path.to_owned(), content);
                ("201 Created", String::new())
            }
        }
    }
}
