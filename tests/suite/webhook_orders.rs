//! In whatever order webhooks come, and whichever of them comes after us: the pod is the same in the end.

use serde_json::Value;
use tenancy_fixer::admission::Endpoint;

use crate::rendered::{Collector, Rendered, Sidecar, Strategy, container, train};
use crate::{support, wire};

type Webhook<'w> = (&'static str, Box<dyn Fn(&mut Value) + 'w>);

/// Lists whose order means nothing, and which each webhook adds to at the end.
const UNORDERED: [&str; 5] = ["containers", "initContainers", "volumes", "env", "volumeMounts"];

/// The pod with these lists in the order of their names.
fn sorted(mut value: Value) -> Value {
    match &mut value {
        Value::Object(members) => {
            for (key, member) in members {
                *member = sorted(member.take());
                if let Some(items) = member.as_array_mut().filter(|_| UNORDERED.contains(&key.as_str())) {
                    items.sort_by_key(|item| item["name"].to_string());
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = sorted(item.take())),
        _ => {}
    }
    value
}

fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![vec![]];
    for next in 0..count {
        orders = orders
            .into_iter()
            .flat_map(|order| {
                (0..=order.len()).map(move |at| {
                    let mut longer = order.clone();
                    longer.insert(at, next);
                    longer
                })
            })
            .collect();
    }
    orders
}

/// Trainings as people write them.
fn trainings() -> Vec<Value> {
    let shell = |shell: &str, text: &str| container("train", &[shell, "-c"], &[text]);
    vec![
        train("4", "0"),
        container("train", &["python3", "-m", "train"], &["--rate=0.1", "--layers", "4"]),
        shell("sh", "cd /opt/trial; ./train 4 0"),
        shell("bash", "./train 4 0 && echo \"done -- with $LAYERS\""),
        container("train", &["sh", "-c", "./train 4 0"], &[]),
    ]
}

#[test]
fn the_pod_is_the_same_in_the_end() {
    for strategy in Strategy::BOTH {
        for sidecar in [Sidecar::Classic, Sidecar::Native] {
            for collector in [Collector::StdOut, Collector::TfEvent] {
                for training in trainings() {
                    for helper in [None, Some(container("helper", &["sleep"], &["1"]))] {
                        let containers = [training.clone()].into_iter().chain(helper).collect();
                        let rendered = Rendered { sidecar, collector, containers, ..Rendered::default() };
                        check(strategy, &rendered);
                    }
                }
            }
        }
    }
}

fn check(strategy: Strategy, rendered: &Rendered) {
    let settings = support::settings(&[strategy.flag()]);
    let ours = |pod: &mut Value| {
        let answered = wire::answered(Endpoint::PodMutate, &wire::review(pod), &settings);
        assert_eq!(answered.warnings, [""; 0], "{pod:#}");
        *pod = answered.object;
    };
    let webhooks: [Webhook<'_>; 3] = [
        ("istio", Box::new(|pod| rendered.istio(pod))),
        ("katib", Box::new(|pod| rendered.katib(pod))),
        ("ours", Box::new(ours)),
    ];
    let expected = sorted(strategy.ours(&rendered.pod()));
    assert_ne!(expected, sorted(rendered.pod()), "there is something to do");
    // Also called after each of the others, as long as there is something new.
    let eager = [[2, 0, 2, 1], [2, 1, 2, 0]].map(Vec::from);
    for order in orders(webhooks.len()).into_iter().chain(eager) {
        let mut pod = rendered.bare();
        for &webhook in &order {
            webhooks[webhook].1(&mut pod);
        }
        // reinvocationPolicy IfNeeded: once more, after all others.
        ours(&mut pod);
        let names: Vec<_> = order.iter().map(|&webhook| webhooks[webhook].0).collect();
        let found = sorted(pod.clone());
        let difference = || {
            let (expected, found) = (format!("{expected:#}"), format!("{found:#}"));
            diffy::create_patch(&expected, &found).to_string()
        };
        assert!(found == expected, "{names:?}, {strategy:?}, {rendered:?}:\n{}", difference());
        let before = pod.clone();
        ours(&mut pod);
        assert_eq!(pod, before, "{names:?}: a further call changes nothing");
    }
}
