//! What the plugin says where no agent is: the rest is tested with a real one.

use std::path::Path;

use super::*;

fn input(folder: &Path, more: Value) -> String {
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "bulkhead-cni",
        "agentSocket": folder.join("agent.sock"),
        "stateFile": folder.join("state"),
        "timeoutMs": 300,
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.7/24"}], "dns": {"x-unknown": [1]}},
    });
    let (Value::Object(config_fields), Value::Object(more)) = (&mut config, more) else {
        panic!("objects");
    };
    config_fields.extend(more);
    config.to_string()
}

fn environment(command: &str) -> impl Fn(&str) -> Option<String> + use<> {
    let command = command.to_owned();
    move |name| {
        Some(match name {
            "CNI_COMMAND" => command.clone(),
            "CNI_CONTAINERID" => "c1".to_owned(),
            "CNI_NETNS" => "/run/netns/none".to_owned(),
            "CNI_IFNAME" => "eth0".to_owned(),
            "CNI_ARGS" => "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1".to_owned(),
            _ => return None,
        })
    }
}

#[test]
fn without_agent_and_rules_the_pod_starts_with_the_result_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let given = input(folder.path(), json!({}));
    let answer = call(environment("ADD"), &given);
    assert!(answer.success);
    let given: Value = serde_json::from_str(&given).unwrap();
    assert_eq!(answer.output.as_ref(), given.get("prevResult"));

    let strict = call(
        environment("ADD"),
        &input(folder.path(), json!({"startGate": "strict"})),
    );
    assert!(!strict.success);
    let output = strict.output.unwrap();
    assert_eq!(output["code"], 11);
    assert!(output["msg"].as_str().unwrap().contains("pod shop/web"), "{output}");
}

#[test]
fn where_rules_were_the_pod_does_not_start_without_agent_but_always_ends() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("state"), "").unwrap();
    let given = input(folder.path(), json!({}));
    let answer = call(environment("ADD"), &given);
    assert!(!answer.success);
    let message = answer.output.unwrap()["msg"].as_str().unwrap().to_owned();
    assert!(
        message.contains("shop/web") && message.contains("agent.sock"),
        "{message}"
    );
    for command in ["DEL", "CHECK", "STATUS", "GC"] {
        let expected = Answer {
            output: None,
            success: true,
        };
        assert_eq!(call(environment(command), &given), expected, "{command}");
    }
}

#[test]
fn versions() {
    let folder = tempfile::tempdir().unwrap();
    let answer = call(environment("VERSION"), r#"{"cniVersion":"1.1.0"}"#);
    assert_eq!(answer.output.unwrap()["cniVersion"], "1.1.0");
    let old = call(
        environment("ADD"),
        &input(folder.path(), json!({"cniVersion": "0.2.0"})),
    );
    assert_eq!(old.output.unwrap()["code"], 1);
}

#[test]
fn what_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let alone = call(environment("ADD"), &input(folder.path(), json!({"prevResult": null})));
    assert_eq!(alone.output.unwrap()["code"], 7);
    let none = call(|_| None, "{}");
    assert_eq!(none.output.unwrap()["code"], 4);
    let nonsense = call(environment("ADD"), "{");
    assert_eq!(nonsense.output.unwrap()["code"], 6);
    let anonymous = |name: &str| match name {
        "CNI_ARGS" => Some("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web".to_owned()),
        name => environment("ADD")(name),
    };
    let answer = call(anonymous, &input(folder.path(), json!({})));
    assert!(answer.output.unwrap()["msg"].as_str().unwrap().contains("K8S_POD_UID"));
}
