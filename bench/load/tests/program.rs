//! The program as a user starts it: what it says with its exit code, and what it leaves behind.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

/// Answers every PING, and every GET with nothing; its address. A read is a command: nothing is
/// pipelined here.
fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("it is bound").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let (mut stream, mut bytes) = (stream, [0; 4096]);
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    let is_ping = bytes[..length].ends_with(b"PING\r\n");
                    let answer: &[u8] = if is_ping { b"+PONG\r\n" } else { b"$-1\r\n" };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn bench(server: &str, words: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quoit-bench"));
    command
        .args(["--server", server])
        .args(words.split_whitespace());
    command.output().expect("the program starts")
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// Scripts and CI go by the exit code: a missed target must not look like success, nor like a
/// broken run.
#[test]
fn exit_codes_tell_met_missed_and_failed_apart() {
    let server = serve();
    let run = |targets: &str| {
        bench(
            &server,
            &format!("get --closed --requests 500 --warmup 0s {targets}"),
        )
    };
    assert_eq!(code(&run("")), Some(0));
    assert_eq!(code(&run("--p99 1h --p999 1h")), Some(0));
    let missed = run("--p99 1ns");
    assert_eq!(code(&missed), Some(1));
    assert!(String::from_utf8_lossy(&missed.stdout).contains("MISSED"));
    let absent = bench("127.0.0.1:1", "get --closed");
    assert_eq!(code(&absent), Some(2));
    assert!(String::from_utf8_lossy(&absent.stderr).contains("127.0.0.1:1"));
    assert_eq!(code(&bench(&server, "get")), Some(2), "no pace was said");
}

#[test]
fn a_run_leaves_its_report_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let report = directory.path().join("report");
    let words = format!(
        "get --rate 5000 --requests 500 --warmup 0s --p99 1h --json - --report {}",
        report.display()
    );
    let output = bench(&serve(), &words);
    assert_eq!(
        code(&output),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let result: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("JSON and nothing else");
    assert_eq!(
        (&result["answers"], &result["failures"]),
        (&500.into(), &0.into())
    );
    assert_eq!(result["operations"][0]["misses"], 500);
    assert_eq!(result["targets"][0]["is_met"], true);
    let kept = std::fs::read_to_string(report.join("result.json")).expect("it was written");
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&kept).expect("JSON"),
        result
    );
    for (name, part) in [("report.html", "</svg>"), ("get.hgrm", "#[Max")] {
        let text = std::fs::read_to_string(report.join(name)).expect("it was written");
        assert!(text.contains(part), "{name}");
    }
}

/// The search has to end and to say the rate, and to fail where no rate will do.
#[test]
fn a_ramp_finds_a_rate_or_says_that_there_is_none() {
    let server = serve();
    let ramp = |target: &str| {
        bench(
            &server,
            &format!(
                "get --ramp --duration 200ms --warmup 0s --ramp-from 50 --ramp-to 200 {target}"
            ),
        )
    };
    let found = ramp("--p99 1h");
    assert_eq!(code(&found), Some(0));
    assert!(String::from_utf8_lossy(&found.stderr).contains("keeps the targets: 200/s"));
    assert_eq!(code(&ramp("--p99 1ns")), Some(1));
}
