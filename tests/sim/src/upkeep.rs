//! What the kernel tells an agent of changes, and the repairs that follow at the pace that ships.

use std::time::Instant;

use warren_agent::reconcile::Touched;

use crate::world::{Event, World};

/// Links, addresses, routes or rules.
pub const NETWORK: Touched = Touched {
    settings: false,
    filter: false,
    network: true,
    pods: false,
};
/// The nftables table.
pub const FILTER: Touched = Touched {
    settings: false,
    filter: true,
    network: false,
    pods: false,
};

impl World {
    /// The kernel tells an agent that something of its own was touched, by whomever.
    pub fn touch(&mut self, node: usize, touched: Touched) {
        let agent = &mut self.agents[node];
        if !agent.runs() || touched == Touched::default() {
            return;
        }
        let before = agent.repairs.poll_due();
        agent.repairs.handle_touched(Instant::now(), touched);
        if agent.repairs.poll_due() != before {
            self.repair_when_due(node);
        }
    }

    /// The kernel tells an agent of the network below the tunnel.
    pub fn stir(&mut self, node: usize) {
        self.agents[node].pace.handle_late_event(Instant::now());
        self.due(node);
    }

    fn repair_when_due(&mut self, node: usize) {
        if let Some(at) = self.agents[node].repairs.poll_due() {
            let delay = at.saturating_duration_since(Instant::now());
            self.after(delay, Event::Repair(node, self.agents[node].life));
        }
    }

    /// A repair may be due.
    pub(crate) fn handle_repair(&mut self, node: usize, life: u64) {
        let agent = &self.agents[node];
        let due = agent.repairs.poll_due().filter(|_| agent.life == life);
        match due {
            Some(at) if agent.runs() && at <= Instant::now() => {}
            Some(_) if agent.runs() => return self.repair_when_due(node),
            _ => return,
        }
        let port = self.machines[node].clone();
        let repaired = self.agents[node].repair(&port);
        let touched = self.tell_what_was_done(node, "repair: ");
        match repaired {
            None => self.agent_was_killed(node),
            Some(repair) if repair.changes > 0 || repair.unsettled => self.ask(node),
            Some(_) => {}
        }
        self.touch(node, touched);
    }

    /// Notes what was done to a machine, and returns what the kernel tells of it.
    pub(crate) fn tell_what_was_done(&mut self, node: usize, how: &str) -> Touched {
        let (done, touched) = {
            let mut machine = self.machines[node].0.borrow_mut();
            machine.pass.fuse = None;
            let touched = std::mem::take(&mut machine.touched);
            (std::mem::take(&mut machine.done), touched)
        };
        for line in &done {
            self.note(format_args!("node{node} {how}{line}"));
        }
        touched
    }

    pub(crate) fn agent_was_killed(&mut self, node: usize) {
        self.note(format_args!("node{node}'s agent is killed while it works"));
        let back = self.random.time(std::time::Duration::from_secs(8));
        self.after(back, Event::StartAgent(node));
    }
}
