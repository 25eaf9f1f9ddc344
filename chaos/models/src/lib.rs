//! Models of LineraDB's protocols, small enough to look at every history that
//! they allow (with the model checker `stateright`).
//!
//! A model is the protocol without everything that does not decide: two keys,
//! one transaction, one reader, and a network that delays and loses what it
//! likes. Each rule of `docs/PROTOCOLS.md` that a model keeps can be switched
//! off; a test shows that with all rules on no history breaks a promise, and
//! that with any one off some history does. So a model also says what each
//! step is there for.

pub mod clock;
pub mod parallel_commit;
pub mod schema_version;

use stateright::{Checker, HasDiscoveries, Model};
use std::hash::Hash;

/// What looking at every history of a model has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Different states that were reached.
    pub states: usize,
    /// The longest of the shortest ways to a state.
    pub depth: usize,
    /// The promises that some history breaks, each with the shortest one found.
    pub broken: Vec<(&'static str, String)>,
    /// What can happen in no history, though it should in some: the model is
    /// poorer than was meant.
    pub unreached: Vec<&'static str>,
}

/// Looks at every history, or as far as the first that breaks a promise.
pub fn explore<M>(model: M) -> Verdict
where
    M: Model + Send + Sync + 'static,
    M::State: std::fmt::Debug + Hash + Send + Sync + Clone + PartialEq,
    M::Action: std::fmt::Debug + Clone + PartialEq,
{
    let checker = { model.checker() }
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let (mut broken, mut unreached) = (Vec::new(), Vec::new());
    for property in checker.model().properties() {
        let found = checker.discovery(property.name);
        match (&property.expectation, found) {
            (stateright::Expectation::Sometimes, None) => unreached.push(property.name),
            (stateright::Expectation::Sometimes, Some(_)) | (_, None) => {}
            (_, Some(path)) => {
                let steps = path.into_actions();
                let steps: Vec<_> = steps.iter().map(|step| format!("{step:?}")).collect();
                broken.push((property.name, steps.join("\n")));
            }
        }
    }
    Verdict {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        broken,
        unreached,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With all rules on, nothing is broken, and everything happens that should.
    pub(crate) fn assert_sound<M>(model: M)
    where
        M: Model + Send + Sync + 'static,
        M::State: std::fmt::Debug + Hash + Send + Sync + Clone + PartialEq,
        M::Action: std::fmt::Debug + Clone + PartialEq,
    {
        let verdict = explore(model);
        let wrong = (&verdict.broken, &verdict.unreached);
        assert_eq!(wrong, (&vec![], &vec![]), "{verdict:?}");
        println!("{} states, {} steps deep", verdict.states, verdict.depth);
    }

    /// What a rule is called, and how to switch it off.
    type Rule<'a, M> = (&'a str, fn(&mut M));

    /// With any one of them off, some promise is broken; prints how.
    pub(crate) fn assert_needed<M>(sound: M, rules: &[Rule<'_, M>])
    where
        M: Model + Copy + Send + Sync + 'static,
        M::State: std::fmt::Debug + Hash + Send + Sync + Clone + PartialEq,
        M::Action: std::fmt::Debug + Clone + PartialEq,
    {
        for (name, off) in rules {
            let mut model = sound;
            off(&mut model);
            let verdict = explore(model);
            assert!(!verdict.broken.is_empty(), "without {name} nothing breaks");
            for (promise, history) in &verdict.broken {
                println!("without {name}, not so: {promise}\n{history}\n");
            }
        }
    }
}
