//! Islands that lie close together.

use std::collections::{BTreeSet, HashSet};

use super::account::CauseKind;
use super::limits::MOST_BETWEEN;
use super::survey::{Survey, Wants, is_simple, slot_of};
use crate::ir::{NodeId, ValueId};

impl Survey<'_> {
    /// Simple nodes between those that stay, where that takes fewer casts.
    pub(super) fn between(&mut self) {
        loop {
            let joined: Vec<Vec<NodeId>> =
                self.simple_components().into_iter().filter(|c| self.saves_casts(c)).collect();
            if joined.is_empty() {
                return;
            }
            for component in joined {
                for id in component {
                    let reason = "it lies between nodes that stay, and would cost more casts";
                    let cause = self.cause(CauseKind::Between, id, reason);
                    self.stay(id, cause);
                }
            }
        }
    }

    /// Nodes of elementwise ops and moves that become float16, by what they are joined to.
    fn simple_components(&self) -> Vec<Vec<NodeId>> {
        let free = |id: NodeId| is_simple(self.graph.node(id)) && self.changes(id) && !self.stays(id);
        let (mut components, mut seen) = (vec![], HashSet::new());
        for &start in self.graph.order().iter().filter(|id| free(**id)) {
            if !seen.insert(start) {
                continue;
            }
            let (mut component, mut stack) = (vec![], vec![start]);
            while let Some(id) = stack.pop() {
                component.push(id);
                let node = self.graph.node(id);
                let before = node.inputs.iter().flatten().filter(|v| self.is_float(**v));
                let before = before.filter_map(|v| self.graph.value(*v).producer);
                let after = node.outputs.iter().flatten().filter(|v| self.is_float(**v));
                let after = after.flat_map(|v| self.graph.uses(*v).iter().copied());
                for next in before.chain(after).filter(|id| free(*id)) {
                    if seen.insert(next) {
                        stack.push(next);
                    }
                }
            }
            component.sort_unstable();
            components.push(component);
        }
        components
    }

    /// Whether a component lies between nodes that stay and nothing else, so that in float32 it takes fewer casts. The
    /// inputs and outputs of the graph count as what they will be, but do not make a reason of their own: a model of
    /// nothing but simple ops is to become float16.
    fn saves_casts(&self, component: &[NodeId]) -> bool {
        if component.len() > MOST_BETWEEN {
            return false;
        }
        let inside = |id: NodeId| component.binary_search(&id).is_ok();
        // What the readers of a value outside the component want of it.
        let wanted = |value: ValueId| -> BTreeSet<Wants> {
            let outside = self.graph.uses(value).iter().filter(|user| !inside(**user));
            let slots = |user: &NodeId| {
                let inputs = self.graph.node(*user).inputs.iter().enumerate();
                let read = inputs.filter(|(_, v)| **v == Some(value)).map(|(slot, _)| self.wants(*user, slot));
                read.collect::<Vec<_>>()
            };
            outside.flat_map(slots).collect()
        };
        let mut saved = false;
        for &id in component {
            let node = self.graph.node(id);
            for &value in node.inputs.iter().flatten().filter(|v| self.is_float(**v)) {
                match self.graph.producer(value) {
                    None if self.interface => return false,
                    None => {}
                    Some((producer, _)) if inside(producer) => {}
                    Some((producer, made_by)) if self.makes_half(producer, slot_of(&made_by.outputs, value)) => {
                        return false;
                    }
                    // Unless it is cast for another reader anyway.
                    Some(_) => saved |= !wanted(value).contains(&Wants::Half),
                }
            }
            for &value in node.outputs.iter().flatten().filter(|v| self.is_float(**v)) {
                let wanted = wanted(value);
                if wanted.contains(&Wants::Half) || (self.interface && self.graph.is_output(value)) {
                    return false;
                }
                saved |= wanted.contains(&Wants::Float);
            }
        }
        saved
    }
}
