//! How an explanation is told.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::judge::Explanation;
use crate::cluster::names;
use crate::cluster::steps::Step;
use crate::looked::Told;

impl Told for Explanation {
    fn is_sound(&self) -> bool {
        self.failed.is_empty()
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let sound = if self.is_sound() { "as it should be" } else { "NOT as it should be" };
        let namespace = if self.kind == "Namespace" { String::new() } else { format!("{}/", self.namespace) };
        let _ = writeln!(text, "{} {namespace}{}: {sound}", self.kind, self.name);
        let _ = writeln!(text, "  namespace  {}: {}", self.namespace, self.tenant);
        match &self.note {
            Some((version, steps)) => {
                let _ = writeln!(text, "  done       by {version}, as its annotation {} says:", names::APPLIED);
                for step in steps.iter() {
                    let _ = writeln!(text, "             {:<16}{}", step.name(), step.meaning());
                }
            }
            None if self.rules.is_some() => {
                let _ = writeln!(text, "  done       nothing that an annotation {} says", names::APPLIED);
            }
            None => {}
        }
        if let Some(rules) = &self.rules {
            let _ = writeln!(text, "  rules now  {}: {}", rules.decision(), rules.reason);
            if !rules.patch.is_empty() {
                let _ = writeln!(text, "             {}", rules.patch);
            }
            for warning in &rules.warnings {
                let _ = writeln!(text, "             warning: {warning}");
            }
        }
        for failed in &self.failed {
            let _ = writeln!(text, "  failed     {}: {}", failed.condition.name(), failed.message);
            let _ = writeln!(text, "         ->  {}", failed.mend);
        }
        for event in &self.events {
            let _ = writeln!(text, "  event      {} {} {}: {}", event.time, event.kind, event.reason, event.message);
        }
        text
    }

    fn json(&self) -> Value {
        let note = self.note.as_ref().map(
            |(version, steps)| json!({"version": version, "steps": steps.iter().map(Step::name).collect::<Vec<_>>()}),
        );
        let rules = self.rules.as_ref().map(|rules| {
            json!({
                "decision": rules.decision(),
                "reason": rules.reason,
                "steps": rules.steps.iter().map(Step::name).collect::<Vec<_>>(),
                "operations": rules.patch,
                "warnings": rules.warnings,
            })
        });
        let failed = self.failed.iter().map(
            |failed| json!({"condition": failed.condition.name(), "message": failed.message, "mend": failed.mend}),
        );
        let events = self.events.iter().map(
            |event| json!({"time": event.time, "type": event.kind, "reason": event.reason, "message": event.message}),
        );
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "object": {"kind": self.kind, "namespace": self.namespace, "name": self.name},
            "sound": self.is_sound(),
            "namespace": self.tenant,
            "note": note,
            "rules": rules,
            "failed": failed.collect::<Vec<_>>(),
            "events": events.collect::<Vec<_>>(),
        })
    }
}
