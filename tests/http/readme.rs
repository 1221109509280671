//! The README's examples of HTTP, run as they stand there.

use std::process::Command;

use crate::common::scratch;
use crate::start;

/// Stands between the outputs of two commands.
const MARK: &str = "-- end of a command --";

/// The commands of the README that begin with `$ curl` or belong to those, each with its output.
fn examples() -> Vec<(String, Vec<String>)> {
    let readme = include_str!("../../README.md");
    let blocks = readme
        .split("```text\n")
        .skip(1)
        .filter_map(|rest| rest.split("\n```").next());
    let mut examples = Vec::new();
    for line in blocks
        .filter(|block| block.contains("$ curl"))
        .flat_map(str::lines)
    {
        match line.strip_prefix("$ ") {
            Some(command) => examples.push((command.to_owned(), Vec::new())),
            None => {
                let (_, output) = examples.last_mut().expect("a block begins with a command");
                output.push(line.to_owned());
            }
        }
    }
    examples
}

/// The same text with a word for each version and each time, which no two runs have in common.
fn leveled(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_hexdigit() || c == '-' {
            word.push(c);
            continue;
        }
        let is_version = word.len() == 25 && word.as_bytes()[16] == b'-';
        let is_time = word.len() >= 13 && word.bytes().all(|byte| byte.is_ascii_digit());
        out.push_str(match () {
            () if is_version => "VERSION",
            () if is_time => "TIME",
            () => &word,
        });
        word.clear();
        out.push(c);
    }
    out.trim_end().to_owned()
}

/// An example that does not work drives away whoever tries it.
#[test]
fn the_examples_of_the_readme_work() {
    let examples = examples();
    assert!(
        examples.len() >= 8,
        "the examples were not found: {examples:?}"
    );
    if Command::new("curl").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no curl here, so the README's examples are not run");
        return;
    }
    let dir = scratch();
    let node = start(dir.path());
    let mut script = String::new();
    for (command, _) in &examples {
        assert!(
            !command.contains("curl") || command.contains("127.0.0.1:8379"),
            "{command}"
        );
        let command = command.replace("127.0.0.1:8379", &node.http.to_string());
        script.push_str(&format!("{command}\necho\necho '{MARK}'\n"));
    }
    let output = Command::new("bash")
        .arg("-c")
        .arg(&script)
        .output()
        .expect("bash runs");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let told: Vec<&str> = output.split(MARK).collect();
    assert_eq!(told.len(), examples.len() + 1, "{output}");
    for ((command, expected), told) in examples.iter().zip(told) {
        let expected = leveled(&expected.join("\n"));
        assert_eq!(leveled(told.trim()), expected, "$ {command}");
    }
}
