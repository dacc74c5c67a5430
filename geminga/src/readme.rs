//! README.md's commands are ones that this binary understands.

use clap::Parser;

use crate::cli::Cli;

const README: &str = include_str!("../../README.md");

/// The lines of its shell blocks that run `geminga`, with continued lines put together, as words.
fn commands(markdown: &str) -> Vec<Vec<String>> {
    let blocks = markdown.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix("sh\n"));
    let lines = blocks.map(|block| block.replace("\\\n", " ")).collect::<Vec<_>>().join("\n");
    let words = |line: &str| {
        let line = line.split(" #").next().unwrap_or_default().trim_end().trim_end_matches('&').replace('\'', "");
        line.split_whitespace().map(|word| word.replace("$zone", "1")).collect::<Vec<_>>()
    };
    lines.lines().map(words).filter(|words| words.first().is_some_and(|word| word == "geminga")).collect()
}

#[test]
fn commands_are_understood() {
    let commands = commands(README);
    for role in ["storage-node", "broker", "proxy", "perf", "admin"] {
        assert!(commands.iter().any(|words| words[1] == role), "{role} is not in README.md any more");
    }
    for words in commands {
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("{}: {error}", words.join(" "));
        }
    }
}
