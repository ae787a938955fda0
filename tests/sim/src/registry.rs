//! The registry: it holds the entries, and tells of them as well as the weather allows.

use std::rc::Rc;

use crate::agent::Told;
use crate::entry::{Entry, Listed};
use crate::world::{Event, World};

impl World {
    /// Writes an entry into the registry and tells everybody.
    pub fn write(&mut self, entry: Entry) {
        let text = format!("{entry:?}");
        self.note(format_args!("registry: {text}"));
        let listed = entry.listed();
        let old = self
            .registry
            .insert(listed.entry.name.clone(), Rc::clone(&listed));
        if let Some(old) = old.filter(|old| old.entry.uid != listed.entry.uid) {
            self.tell_deleted(&old);
        }
        for agent in 0..self.agents.len() {
            self.tell(agent, Told::Applied(Rc::clone(&listed)));
        }
    }

    /// Takes an entry out of the registry and tells everybody.
    pub fn delete(&mut self, name: &str) {
        if let Some(old) = self.registry.remove(name) {
            self.note(format_args!("registry: {name} is gone"));
            self.tell_deleted(&old);
        }
    }

    fn tell_deleted(&mut self, old: &Listed) {
        for agent in 0..self.agents.len() {
            let told = Told::Deleted {
                name: old.entry.name.clone(),
                uid: old.entry.uid.clone(),
            };
            self.tell(agent, told);
        }
    }

    /// Sends an event on its way, as well as the weather allows. Nothing precedes the whole view.
    fn tell(&mut self, agent: usize, told: Told) {
        let known = self.agents[agent].runs() && self.agents[agent].synced;
        if !known || self.away[agent] || self.random.chance(self.weather.lost) {
            return;
        }
        let copies = 1 + u32::from(self.random.chance(self.weather.twice));
        for _ in 0..copies {
            let late = if self.random.chance(10) { 20 } else { 1 };
            let delay = self.random.time(self.weather.delay) * late;
            let life = self.agents[agent].life;
            self.after(delay, Event::Told(agent, life, told.clone()));
        }
    }

    /// Tells an agent the whole view, as it is now, after a while.
    pub fn relist(&mut self, agent: usize) {
        if !self.away[agent] && self.agents[agent].runs() {
            let all = Rc::new(self.registry.values().cloned().collect());
            let delay = self.random.time(self.weather.delay);
            let life = self.agents[agent].life;
            self.after(delay, Event::Told(agent, life, Told::Synced(all)));
        }
    }
}

/// What is told, for the story.
pub(crate) fn brief(told: &Told) -> String {
    match told {
        Told::Synced(all) => format!("of all {}", all.len()),
        Told::Applied(listed) => format!("of {} {}", listed.entry.name, listed.entry.uid),
        Told::Deleted { name, uid } => format!("the end of {name} {uid}"),
    }
}
