//! Ctrl-C and SIGTERM end what waits for a server.

use crate::served::{PASSWORD, Served, USER};
use crate::support::{Run, noise};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::process::{Child, Stdio};

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Starts a client, waits until the server was asked for `begun`, and interrupts it; what it says.
fn interrupted(served: &Served, line: &str, begun: &str, stall: bool) -> Run {
    let mut seen = 0;
    served.requests(&mut seen);
    let mut client = served.client_of(USER, PASSWORD);
    client.args(line.split(' ')).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = client.spawn().unwrap();
    served.wait(line, || served.log()[seen..].contains(begun));
    let server = served.child.as_ref().unwrap();
    if stall {
        send(server, Signal::STOP);
    }
    send(&child, if stall { Signal::TERM } else { Signal::INT });
    served.wait(line, || child.try_wait().unwrap().is_some());
    send(server, Signal::CONT);
    let run = Run::from(child.wait_with_output().unwrap());
    run.assert_failed(line);
    run
}

#[test]
fn a_slow_or_stalled_line_holds_nobody() {
    let served = Served::new();
    served.world.write("tree/big", noise(1, 8 << 20));
    served.world.write("disk", noise(2, 24 << 20));
    served.ok("backup root.pxar:tree disk.img:disk --backup-id me");
    for stall in [false, true] {
        // At this rate the rest takes minutes.
        let backup = "backup root.pxar:fresh disk.img:disk --backup-id other --rate 20KB";
        served.world.write("fresh/big", noise(3, 8 << 20));
        let run = interrupted(&served, backup, "dynamic_chunk", stall);
        run.says("interrupted: no snapshot was made");
        let restore = "restore host/me disk.img out.img --rate 20KB";
        let run = interrupted(&served, restore, "session: GET /chunk", stall);
        run.says("interrupted: the restore is not complete");
    }
    let left = fs::read_dir(served.world.path("")).unwrap().flatten();
    let names: Vec<_> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
    let is_left = |name: &&String| name.starts_with("out") || name.starts_with(".keepwell");
    assert_eq!(names.iter().find(is_left), None, "nothing half written");
    assert!(!served.ok("list").stdout.contains("host/other"));
    // It may be there for a moment: the server removes it when it hears of the end.
    served.ok("backup root.pxar:tree --backup-id other");
}
