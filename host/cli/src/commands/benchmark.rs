//! `benchmark`: how fast this machine is at what a backup does. Spec: cli.md §2.

use crate::args::{option, output_options, repository};
use crate::encryption::{read_key, unlock};
use crate::output::{check_format, print};
use crate::plugins::Plugins;
use crate::remote;
use crate::repository::Repository;
use crate::terminal::now;
use anyhow::Result;
use clap::{ArgMatches, Command, value_parser};
use keepwell_engine::benchmark::{Test, speed};
use keepwell_engine::plugin::{Alignment, Column, Document, Layout, Rendering};
use keepwell_seal::EncryptionKey;
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// As long as the reference uploads.
const UPLOAD_SECONDS: f64 = 5.0;
const EACH: Duration = Duration::from_secs(1);

/// Key, what it is called in the log and in the table, and what a Ryzen 7 2700X does, in MB/s.
type Row = (&'static str, &'static str, &'static str, f64, Option<Test>);

const ROWS: [Row; 6] = [
    ("tls", "TLS", "TLS (maximal backup upload speed)", 1235.0, None),
    ("sha256", "SHA256", "SHA256 checksum computation speed", 2022.0, Some(Test::Sha256)),
    ("compress", "Compression", "ZStd level 1 compression speed", 752.0, Some(Test::Compress)),
    (
        "decompress",
        "Decompress",
        "ZStd level 1 decompression speed",
        1198.0,
        Some(Test::Decompress),
    ),
    ("verify", "Verify", "Chunk verification speed", 758.0, Some(Test::Verify)),
    ("aes256_gcm", "AES256/GCM", "AES256 GCM encryption speed", 3645.0, Some(Test::Encrypt)),
];

pub(crate) fn command(plugins: &Plugins) -> Command {
    Command::new("benchmark")
        .about("Measure how fast this machine digests, compresses and encrypts")
        .arg(repository())
        .arg(
            option("keyfile", "FILE", "Key to encrypt with [default: a new one]")
                .value_parser(value_parser!(PathBuf)),
        )
        .args(output_options(plugins))
}

pub(crate) fn run(plugins: &Plugins, matches: &ArgMatches) -> Result<()> {
    check_format(plugins, matches)?;
    let key = match matches.get_one::<PathBuf>("keyfile") {
        Some(path) => unlock(&read_key(path)?)?,
        None => EncryptionKey::generate(),
    };
    let server = match Repository::find(matches.get_one("repository")) {
        Ok(Repository::Server(server)) => Some(remote::open(&server, matches)?),
        _ => None,
    };
    let (mut data, mut shown) = (Map::new(), Map::new());
    for (name, log, _, top, test) in ROWS {
        let top = top * 1e6;
        let speed = match (test, &server) {
            (Some(test), _) => speed(test, &key, EACH)?,
            (None, Some(store)) => store.upload_speed(now(), UPLOAD_SECONDS)?,
            (None, None) => {
                data.insert(name.into(), json!({ "top": top }));
                shown.insert(name.into(), "not tested".into());
                continue;
            }
        };
        let megabytes = speed / 1e6;
        tracing::info!("{log} speed: {megabytes:.2} MB/s");
        data.insert(name.into(), json!({ "speed": speed, "top": top }));
        let percent = speed * 100.0 / top;
        shown.insert(name.into(), format!("{megabytes:.2} MB/s ({percent:.0}%)").into());
    }
    let column = |(key, _, header, _, _): Row| Column {
        key,
        header,
        alignment: Alignment::Left,
        rendering: Rendering::Text,
    };
    let layout = Layout::Properties(ROWS.map(column).into());
    let document =
        Document { data: Value::Object(data), display: Some(Value::Object(shown)), layout };
    print(plugins, matches, &document)
}
