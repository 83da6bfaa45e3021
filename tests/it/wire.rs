//! The server's API as any program can use it, and as hostile ones do: browsing, encodings, and
//! clients that are slow, cut off, too large or out of order.

use crate::served::{SNAPSHOT, Served, USER, tree};
use crate::support::{World, noise};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::{Cursor, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

const PROTOCOL: &str = "proxmox-backup-protocol-v1";

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// A server and a token for its API.
struct Wire {
    served: Served,
    authorization: String,
    tls: Arc<ClientConfig>,
}

/// Status, head and body.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn json(&self) -> serde_json::Value {
        assert_eq!(self.status, 200, "{}", self.text());
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Wire {
    fn new() -> Self {
        Self::of(Served::new())
    }

    fn of(served: Served) -> Self {
        let authorization = token(&served, "tok");
        served
            .world
            .ok(&format!("admin acl update / Admin --auth-id {USER}!tok --config srv/server.toml"));
        let pem = fs::read(served.world.path("srv/proxy.pem")).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { served, authorization, tls: Arc::new(tls) }
    }

    fn connect(&self) -> Tls {
        let stream = TcpStream::connect(("127.0.0.1", self.served.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        StreamOwned::new(ClientConnection::new(self.tls.clone(), name).unwrap(), stream)
    }

    /// The head of a request with these lines more.
    fn head(&self, request: &str, more: &str) -> String {
        head(&self.authorization, request, more)
    }

    fn ask(&self, request: &str, more: &str) -> Answer {
        self.send(self.head(request, &format!("Connection: close\r\n{more}")).as_bytes())
    }

    /// What comes back until the server closes.
    fn send(&self, bytes: &[u8]) -> Answer {
        let mut stream = self.connect();
        // A server that has heard enough may close before it has heard all.
        let _ = stream.write_all(bytes).and_then(|()| stream.flush());
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        parse(&all)
    }

    fn get(&self, what: &str, query: &str) -> Answer {
        let target = format!(
            "GET /api2/json/admin/datastore/store1/{what}?backup-type=host&backup-id=me&backup-time=1700000000&{query}"
        );
        self.ask(&target, "")
    }
}

fn head(authorization: &str, request: &str, more: &str) -> String {
    format!("{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {authorization}\r\n{more}\r\n")
}

/// A new token of the user, without any rights, as it is sent.
fn token(served: &Served, name: &str) -> String {
    let made = format!("admin token create {USER}!{name} --config srv/server.toml");
    let made = served.world.ok(&made).stdout;
    let secret = made.lines().find_map(|line| line.strip_prefix("Secret: "));
    format!("PBSAPIToken={USER}!{name}:{}", secret.unwrap())
}

fn parse(all: &[u8]) -> Answer {
    let Some(end) = all.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Answer { status: 0, head: String::new(), body: all.to_vec() };
    };
    let head = String::from_utf8_lossy(&all[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    let mut body = all[end + 4..].to_vec();
    if head.contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Answer { status, head, body }
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        body.extend(&rest[end + 2..end + 2 + size]);
        if size == 0 {
            return body;
        }
        rest = &rest[end + 4 + size..];
    }
    panic!("the body is cut")
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text).replace('+', "%2B")
}

fn links(world: &World) {
    std::os::unix::fs::symlink("small", world.path("tree/dir/link")).unwrap();
    fs::hard_link(world.path("tree/dir/small"), world.path("tree/dir/twin")).unwrap();
    fs::hard_link(world.path("tree/big"), world.path("tree/dir/outer")).unwrap();
    world.write("tree/dir/empty", "");
    fs::create_dir(world.path("tree/dir/none")).unwrap();
}

#[test]
fn archives_are_browsed_without_a_restore() {
    let wire = Wire::new();
    let world = &wire.served.world;
    tree(world);
    links(world);
    world.ok("key create a.key --kdf none");
    let backup = "backup root.pxar:tree disk.img:disk app.conf:app.conf --backup-id me";
    wire.served.ok(&format!("{backup} --backup-time 1700000000"));
    let top = wire.get("catalog", "filepath=root").json();
    assert_eq!(top["data"][0]["text"], "root.pxar.didx");
    assert_eq!(top["data"][0]["filepath"], base64("/root.pxar.didx"));
    let root = wire.get("catalog", &format!("filepath={}", base64("/root.pxar.didx"))).json();
    assert_eq!(root["data"][0]["text"], "big");
    assert_eq!((&root["data"][0]["type"], &root["data"][0]["leaf"]), (&"f".into(), &true.into()));
    assert_eq!(root["data"][0]["size"], 9 << 20);
    assert_eq!(root["data"][1]["filepath"], base64("root.pxar.didx/dir"));
    let lost = wire.get("catalog", &format!("filepath={}", base64("/root.pxar.didx/x")));
    assert_eq!(
        (lost.status, lost.text().as_str()),
        (400, "path \"/root.pxar.didx/x\" not found in catalog")
    );
    let download = |path: &str, more: &str| {
        wire.get("pxar-file-download", &format!("filepath={}{more}", base64(path)))
    };
    assert!(download("/root.pxar.didx/big", "").body == noise(1, 9 << 20));
    assert!(download("root.pxar.didx/dir/outer", "").body == noise(1, 9 << 20), "a hard link");
    assert_eq!(download("/root.pxar.didx/dir/none/x", "").status, 404);
    assert_eq!(download("/root.pxar.didx/dir/link", "").status, 400);
    assert_eq!(wire.get("pxar-file-download", "filepath=%25").status, 400);
    let zip = download("/root.pxar.didx/dir", "");
    assert!(zip.head.contains("filename=\"dir.zip\""), "{}", zip.head);
    let mut zip = zip::ZipArchive::new(Cursor::new(zip.body)).unwrap();
    let names: Vec<String> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
    assert_eq!(names, ["empty", "link", "none/", "outer", "small", "twin"]);
    for (name, content) in [("small", b"small".to_vec()), ("outer", noise(1, 9 << 20))] {
        let mut bytes = Vec::new();
        zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes == content, "{name}");
    }
    let tar = download("/root.pxar.didx", "&tar=1");
    assert!(tar.head.contains("filename=\"root.pxar.tar.zst\""), "{}", tar.head);
    let tar = zstd::decode_all(&tar.body[..]).unwrap();
    tar::Archive::new(&tar[..]).unpack(world.path("untarred")).unwrap();
    for name in ["big", "dir/small", "dir/twin", "dir/outer", "dir/empty"] {
        let untarred = fs::read(world.path("untarred").join(name)).unwrap();
        assert!(untarred == fs::read(world.path("tree").join(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_link(world.path("untarred/dir/link")).unwrap().to_str(), Some("small"));
    let decoded = |name: &str| wire.get("download-decoded", &format!("file-name={name}"));
    assert!(decoded("disk.img.fidx").body == noise(2, 9 << 20));
    assert_eq!(decoded("app.conf.blob").text(), "key = value\n");
    assert_eq!(decoded("nope.blob").status, 400);
    wire.served.ok(&format!("{backup} --backup-time 1700000001 --keyfile a.key"));
    let encrypted = |what: &str, query: &str| {
        let answer = wire.ask(&format!("GET /api2/json/admin/datastore/store1/{what}?backup-type=host&backup-id=me&backup-time=1700000001&{query}"), "");
        assert_eq!(answer.status, 400);
        answer.text()
    };
    let text = encrypted("catalog", "filepath=root");
    assert_eq!(text, "cannot decode 'catalog.pcat1.didx' - is encrypted");
    let text = encrypted("download-decoded", "file-name=disk.img.fidx");
    assert_eq!(text, "cannot decode 'disk.img.fidx' - is encrypted");
    let path = base64("/root.pxar.didx/big");
    encrypted("pxar-file-download", &format!("filepath={path}"));
}

#[test]
fn answers_are_deflated_for_who_asks() {
    let wire = Wire::new();
    let target = "GET /api2/json/access/permissions";
    let plain = wire.ask(target, "");
    assert!(!plain.head.contains("content-encoding") && plain.body.len() > 256);
    for (asked, deflates) in
        [("gzip, Deflate", true), ("deflate;q=0", false), ("gzip", false), ("deflate;q=0.5", true)]
    {
        let answer = wire.ask(target, &format!("Accept-Encoding: {asked}\r\n"));
        assert_eq!(answer.head.contains("content-encoding: deflate"), deflates, "{asked}");
        let mut text = answer.body.clone();
        if deflates {
            text.clear();
            flate2::read::ZlibDecoder::new(&answer.body[..]).read_to_end(&mut text).unwrap();
        }
        assert_eq!(text, plain.body);
    }
}

#[test]
fn what_is_too_large_or_no_request_is_refused() {
    let wire = Wire::new();
    let version = "GET /api2/json/version";
    let post = "POST /api2/json/access/ticket";
    let long = format!("{version}?x={}", "a".repeat(3100));
    assert_eq!(wire.ask(&long, "").status, 414);
    let large = wire.ask(version, &format!("X-Large: {}\r\n", "a".repeat(300 << 10)));
    // Who sends on may find the connection closed before he has read the answer.
    assert!([0, 431].contains(&large.status), "{}", large.status);
    let many: String = (0..500).map(|number| format!("X-{number}: y\r\n")).collect();
    assert_eq!(wire.ask(version, &many).status, 431);
    let body = |length: usize, sent: usize, kind: &str| {
        let more =
            format!("Connection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n");
        let mut bytes = wire.head(post, &more).into_bytes();
        bytes.extend(vec![b'a'; sent]);
        wire.send(&bytes)
    };
    let large = body(600 << 10, 600 << 10, "application/json");
    assert!([0, 400].contains(&large.status), "{}", large.text());
    assert_eq!(body(3, 3, "text/plain").status, 400);
    assert_eq!(body(3, 3, "application/json").status, 400);
    for bad in [
        "",
        "GET",
        "GET / HTTP/9.9\r\n\r\n",
        "\0\0\0\0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut stream = wire.connect();
        stream.write_all(bad.as_bytes()).unwrap();
        stream.conn.send_close_notify();
        let _ = stream.flush();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        assert!(![200, 101].contains(&parse(&all).status), "{bad:?}");
    }
    let twice = "Content-Length: 3\r\nContent-Length: 5\r\n";
    assert_eq!(wire.ask(post, twice).status, 400);
    let both = "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n";
    assert_ne!(wire.ask(post, both).status, 200);
    assert_eq!(wire.ask(version, "").status, 200, "it goes on");
}

#[test]
fn slow_and_cut_requests_hold_nobody_up() {
    let wire = Wire::new();
    let mut open = Vec::new();
    for number in 0..40 {
        let mut stream = wire.connect();
        let more = "Content-Type: application/json\r\nContent-Length: 1000\r\n";
        let head = wire.head("POST /api2/json/access/ticket", more);
        let sent = match number % 4 {
            // A head that does not end, one that is not begun, and a body that does not end.
            0 => &head[..40],
            1 => "",
            _ => &head[..],
        };
        stream.write_all(sent.as_bytes()).unwrap();
        if number % 4 > 1 {
            stream.write_all(b"{\"username\":").unwrap();
        }
        let _ = stream.flush();
        open.push(stream);
    }
    assert_eq!(wire.ask("GET /api2/json/version", "").status, 200);
    // Half of them go without a word, the others half-close.
    for (number, stream) in open.into_iter().enumerate() {
        match number % 2 {
            0 => drop(stream),
            _ => stream.sock.shutdown(std::net::Shutdown::Write).unwrap(),
        }
    }
    assert_eq!(wire.ask("GET /api2/json/version", "").status, 200);
}

impl Wire {
    /// A connection that has become a session of a backup, and what followed the answer's head.
    fn upgraded(&self, protocol: &str) -> Result<Tls, String> {
        self.upgraded_for("raw", protocol)
    }

    fn upgraded_for(&self, id: &str, protocol: &str) -> Result<Tls, String> {
        let mut stream = self.connect();
        let target = format!(
            "GET /api2/json/backup?store=store1&backup-type=host&backup-id={id}&backup-time=1700000000"
        );
        let more = format!("Connection: upgrade\r\nUpgrade: {protocol}\r\n");
        let sent = stream.write_all(self.head(&target, &more).as_bytes());
        sent.and_then(|()| stream.flush()).map_err(|error| error.to_string())?;
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
            answer.extend(byte);
        }
        match parse(&answer).status {
            101 => Ok(stream),
            _ => {
                // The text follows, as long as its head says.
                let mut text = vec![0; 512];
                let count = stream.read(&mut text).unwrap_or(0);
                Err(String::from_utf8_lossy(&text[..count]).into_owned())
            }
        }
    }

    /// Waits until the raw backup has left nothing.
    fn is_over(&self) {
        let group = self.served.world.repo().join("host/raw");
        self.served.wait("the end of the raw session", || {
            let entries = fs::read_dir(&group).into_iter().flatten().flatten();
            entries.filter(|entry| entry.file_name() != "owner").count() == 0
        });
    }
}

#[test]
fn a_session_that_is_no_http2_ends_and_leaves_nothing() {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let wire = Wire::new();
    let world = &wire.served.world;
    tree(world);
    assert!(wire.upgraded("nonsense").unwrap_err().contains("invalid protocol name"));
    let frame = |length: u32, kind: u8, stream: u32| {
        let [_, a, b, c] = length.to_be_bytes();
        [&[a, b, c, kind, 0][..], &stream.to_be_bytes()].concat()
    };
    let with_preface = |more: &[u8]| [PREFACE, SETTINGS, more].concat();
    let again = wire.head(
        "GET /api2/json/backup?store=store1&backup-type=host&backup-id=raw&backup-time=1700000000",
        &format!("Connection: upgrade\r\nUpgrade: {PROTOCOL}\r\n"),
    );
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("the upgrade once more", again.into_bytes()),
        ("no preface", noise(1, 1000)),
        ("half a preface", PREFACE[..10].to_vec()),
        ("a frame that is too large", with_preface(&frame(0xff_ffff, 0, 1))),
        ("data without a request", with_preface(&[frame(4, 0, 1), vec![1; 4]].concat())),
        ("a header block that is none", with_preface(&[frame(8, 1, 1), vec![0xff; 8]].concat())),
        ("a window of nothing", with_preface(&[frame(4, 8, 0), vec![0; 4]].concat())),
        ("settings of a wrong length", with_preface(&[frame(5, 4, 0), vec![0; 5]].concat())),
        ("a thousand pings", with_preface(&[frame(8, 6, 0), vec![0; 8]].concat().repeat(1000))),
        ("a thousand settings", with_preface(&SETTINGS.repeat(1000))),
        ("nothing at all", Vec::new()),
    ];
    for (what, bytes) in cases {
        // The session before ends a moment after its connection.
        let mut stream = None;
        wire.served.wait(what, || {
            stream = wire.upgraded(PROTOCOL).ok();
            stream.is_some()
        });
        let mut stream = stream.unwrap();
        // Meanwhile the group is taken.
        let busy = wire.upgraded(PROTOCOL).err();
        assert!(
            busy.is_some_and(
                |text| text.contains("unable to acquire lock on backup group directory")
            ),
            "{what}"
        );
        let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
        let _ = stream.sock.shutdown(std::net::Shutdown::Write);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        drop(stream);
        wire.is_over();
    }
    wire.served.ok("backup root.pxar:tree --backup-id raw");
    wire.served.ok("backup root.pxar:tree --backup-id me --backup-time 1700000000");
    wire.served.ok(&format!("restore {SNAPSHOT} root.pxar out"));
    wire.served.ok("verify");
}

#[test]
fn a_session_keeps_its_place_among_the_connections() {
    let wire = Wire::of(Served::with_config("connections-per-address-max = 3\n"));
    let ping = || wire.ask("GET /api2/json/ping", "").status;
    let mut sessions = Vec::new();
    for id in ["a", "b", "c"] {
        // Who looked whether the server is there may not have gone yet.
        wire.served.wait("a session", || {
            let session = wire.upgraded_for(id, PROTOCOL).ok();
            let began = session.is_some();
            sessions.extend(session);
            began
        });
    }
    assert_eq!(ping(), 0, "no place is left");
    drop(sessions);
    wire.served.wait("a place", || ping() == 200);
}

#[test]
fn an_upgrade_is_checked_in_the_order_of_the_reference() {
    let wire = Wire::new();
    let upgrade = format!("Upgrade: {PROTOCOL}\r\n");
    let ask = |what: &str, more: &str| {
        let target = format!("GET /api2/json/backup?backup-type=host&backup-time=5&{what}");
        let answer = wire.ask(&target, more);
        (answer.status, answer.text())
    };
    let foreign = "store=store1&ns=nope&backup-id=x&benchmark=true";
    assert_eq!(ask(foreign, "").1, "missing Upgrade header");
    assert_eq!(ask(foreign, &upgrade), (404, "namespace not found".to_owned()));
    assert_eq!(
        ask("store=store1&backup-id=x&benchmark=true", &upgrade),
        (400, "benchmark flags is only allowed on 'host/benchmark'".to_owned())
    );
    assert_eq!(
        ask("store=store1&backup-id=benchmark", &upgrade).1,
        "unable to run benchmark without --benchmark flags"
    );
    assert_eq!(ask("store=nope&backup-id=x", "").1, "no such datastore 'nope'");
}

#[test]
fn who_has_no_rights_does_not_learn_what_there_is() {
    let wire = Wire::new();
    let nobody = token(&wire.served, "none");
    let store = |what: &str| format!("/api2/json/admin/datastore/nope/{what}");
    let snapshot = "backup-type=host&backup-id=a&backup-time=5";
    let group = "backup-type=host&backup-id=a";
    for request in [
        "GET /api2/json/backup?store=nope&backup-type=host&backup-id=a&backup-time=5".to_owned(),
        format!("DELETE {}", store(&format!("snapshots?{snapshot}"))),
        format!("DELETE {}", store(&format!("groups?{group}"))),
        format!("DELETE {}", store("namespace?ns=a")),
        format!("GET {}", store("namespace")),
        format!("GET {}", store(&format!("files?{snapshot}"))),
        format!("GET {}", store(&format!("notes?{snapshot}"))),
        format!("POST {}", store(&format!("change-owner?{group}&new-owner={USER}"))),
        format!("POST {}", store(&format!("prune?{group}"))),
        format!("POST {}", store(&format!("upload-backup-log?{snapshot}"))),
    ] {
        let ask = |authorization: &str| {
            let head = head(authorization, &request, "Connection: close\r\n");
            wire.send(head.as_bytes())
        };
        assert_eq!(ask(&nobody).status, 403, "{request}");
        let answer = ask(&wire.authorization);
        let text = answer.text();
        assert_eq!((answer.status, text.as_str()), (400, "no such datastore 'nope'"), "{request}");
    }
}

#[test]
fn names_of_tasks_show_no_paths() {
    let wire = Wire::new();
    let upid = format!("UPID:n:00000001:00000001:00000001:00000001:backup:x:{USER}:");
    let target = format!("GET /api2/json/nodes/localhost/tasks/{upid}/log?download=1");
    let answer = wire.ask(&target, "");
    assert_eq!(answer.status, 400);
    let dir = wire.served.world.dir.path().to_string_lossy().into_owned();
    assert!(!answer.text().contains(&dir), "{}", answer.text());
}
