//! What is told of the node: its health, its figures in Prometheus's text format, and the page.

use std::collections::{BTreeMap, BTreeSet};

use crate::common::{Launch, scratch};
use crate::start;
use crate::web::Web;

/// Reads the text format of Prometheus (version 0.0.4) by its rules, and panics where it breaks
/// one.
fn read_figures(text: &str) -> BTreeMap<String, (String, f64)> {
    assert!(text.ends_with('\n'), "the last line has its end");
    let is_name = |name: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(fits)
    };
    let (mut helped, mut kinds) = (BTreeSet::new(), BTreeMap::new());
    let mut figures = BTreeMap::new();
    for line in text.lines() {
        assert!(!line.is_empty() && line.trim() == line, "{line:?}");
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').expect("a name and a text");
            assert!(
                is_name(name) && !words.is_empty() && !words.contains('\\'),
                "{line}"
            );
            assert!(helped.insert(name.to_owned()), "one HELP for each: {line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a name and a type");
            assert!(["counter", "gauge"].contains(&kind), "{line}");
            assert!(
                !figures.contains_key(name),
                "TYPE comes before the figure: {line}"
            );
            let before = kinds.insert(name.to_owned(), kind.to_owned());
            assert!(before.is_none(), "one TYPE for each: {line}");
        } else {
            let (name, value) = line.split_once(' ').expect("a name and a value");
            let value: f64 = value
                .parse()
                .unwrap_or_else(|_| panic!("no number: {line}"));
            let kind = kinds
                .get(name)
                .unwrap_or_else(|| panic!("no TYPE before {line}"));
            assert!(is_name(name) && helped.contains(name), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(value.is_finite() && value >= 0.0, "{line}");
            let before = figures.insert(name.to_owned(), (kind.clone(), value));
            assert!(before.is_none(), "told twice: {line}");
        }
    }
    assert_eq!(kinds.len(), figures.len(), "each TYPE has its figure");
    figures
}

/// A monitor that misreads the figures, or gets those of one core only, warns of nothing.
#[test]
fn figures_are_those_of_all_cores_in_the_form_that_monitors_read() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    let figures = |web: &mut Web| {
        let answer = web.get("/metrics");
        assert_eq!(answer.status, 200);
        let kind = answer.field("content-type").expect("a media type");
        assert!(kind.starts_with("text/plain; version=0.0.4"), "{kind}");
        read_figures(&String::from_utf8(answer.body).expect("it is text"))
    };
    let before = figures(&mut web);
    assert!(before.len() > 30, "{} figures", before.len());
    for index in 0..50 {
        assert_eq!(web.put(&format!("/kv/k{index}"), b"0123456789").status, 200);
        assert_eq!(node.client().ask(&format!("SET r{index} 1")).text(), "OK");
    }
    let after = figures(&mut web);
    for (name, (kind, value)) in &before {
        let (_, now) = &after[name];
        assert!(
            kind != "counter" || now >= value,
            "{name} went from {value} to {now}"
        );
    }
    let of = |name: &str| after[name].1;
    let grown = |name: &str| after[name].1 - before[name].1;
    assert_eq!(of("quoit_cores"), 2.0);
    assert_eq!(of("quoit_log_failed_cores"), 0.0);
    assert_eq!(of("quoit_records"), 100.0, "records of both cores");
    assert!(grown("quoit_http_requests_total") >= 50.0);
    assert!(grown("quoit_commands_total") >= 50.0);
    assert!(of("quoit_clients") >= 1.0 && of("quoit_log_bytes") > 0.0);
    assert_eq!(
        of("quoit_records") as u64,
        node.info("records_estimate"),
        "as in INFO"
    );
}

/// Whoever looks after the node asks one of these.
#[test]
fn health_and_the_page_tell_how_the_node_is() {
    let dir = scratch();
    let node = start(dir.path());
    let mut web = Web::connect(&node);
    for (path, status) in [
        ("/health", "ready"),
        ("/health?ready", "ready"),
        ("/health/ready", "ready"),
        ("/health?live", "live"),
        ("/health/live", "live"),
    ] {
        let answer = web.get(path);
        assert_eq!(
            (answer.status, answer.text("status")),
            (200, status.into()),
            "{path}"
        );
    }
    assert_eq!(web.head("/health").status, 200);
    let page = web.get("/");
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    let text = String::from_utf8(page.body).expect("it is text");
    assert!(text.contains("Clients that are connected"), "{text}");
    assert!(
        !text.contains("http://") && !text.contains("<script"),
        "nothing from elsewhere"
    );
}

/// Two nodes on one machine: the second must say which port is taken, and take another one when
/// told to.
#[test]
fn a_port_that_is_taken_is_named_with_its_option() {
    let dir = scratch();
    let node = start(dir.path());
    let taken = node.http.port();
    let other = dir.path().join("other");
    let (code, said) = Launch::new(dir.path())
        .with("--dir", other.display())
        .with("--http-port", taken)
        .refused();
    assert!(code == Some(1) && said.contains("--http-port"), "{said}");
    assert!(said.contains(&taken.to_string()), "{said}");
    let node = Launch::new(dir.path())
        .with("--dir", other.display())
        .start();
    assert_ne!(node.http.port(), taken);
    assert_eq!(Web::connect(&node).get("/health").status, 200);
}
