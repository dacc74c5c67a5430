//! Everything that can be typed is explained, and every setting of a server can be given in each of its layers.

use std::collections::BTreeSet;

use clap::{Arg, Command, CommandFactory};

use super::*;
use crate::options::{Options, ProxyOptions, dict};

fn built() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn unexplained(command: &Command, path: &str, found: &mut Vec<String>) {
    let says = |text: Option<&clap::builder::StyledStr>| text.is_some_and(|text| !text.to_string().trim().is_empty());
    if !says(command.get_about()) {
        found.push(path.to_owned());
    }
    let silent = command.get_arguments().filter(|argument| !says(argument.get_help()));
    found.extend(silent.map(|argument| format!("{path} {argument}")));
    for sub in command.get_subcommands() {
        unexplained(sub, &format!("{path} {}", sub.get_name()), found);
    }
}

#[test]
fn every_command_and_argument_is_explained() {
    let mut found = Vec::new();
    unexplained(&built(), "geminga", &mut found);
    assert!(found.is_empty(), "without help: {found:#?}");
}

/// The arguments of a role that are settings.
fn settings(role: &str) -> Vec<Arg> {
    let command = built();
    let role = command.find_subcommand(role).expect("it is there");
    role.get_arguments().filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version")).cloned().collect()
}

fn assert_layers<O: Options>(role: &str) {
    let keys: BTreeSet<String> = dict(&O::default()).unwrap().into_keys().collect();
    let mut given = BTreeSet::new();
    for argument in settings(role) {
        let id = argument.get_id().as_str();
        assert_eq!(argument.get_long(), Some(id.replace('_', "-").as_str()), "the argument {id} of {role}");
        let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
        assert_eq!(variable, Some(format!("GEMINGA_{}", id.to_uppercase())), "the variable of --{id} of {role}");
        given.insert(id.to_owned());
    }
    // Where the file is cannot be said in it.
    assert!(given.remove("config"), "{role} takes no config file");
    assert_eq!(given, keys, "arguments of {role}, and keys of its config file");
}

#[test]
fn every_setting_of_a_server_is_an_argument_a_variable_and_a_key_of_the_file() {
    assert_layers::<StandaloneOptions>("standalone");
    assert_layers::<StandaloneOptions>("config");
    assert_layers::<BrokerOptions>("broker");
    assert_layers::<StorageNodeOptions>("storage-node");
    assert_layers::<ProxyOptions>("proxy");
}
