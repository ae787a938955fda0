//! Which processor a shard stays on.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::ShardId;

/// Keeps the calling thread on one of the processors that it may use, another one for each shard as far
/// as there are so many. Where the kernel refuses, it runs wherever there is room.
pub(crate) fn pin(shard: ShardId) {
    let this_thread = Pid::from_raw(0);
    let pinned = sched_getaffinity(this_thread).and_then(|allowed| {
        let processors = (0..CpuSet::count()).filter(|n| allowed.is_set(*n) == Ok(true));
        let processors: Vec<usize> = processors.collect();
        let mut only = CpuSet::new();
        let turn = usize::from(shard.number()) % processors.len().max(1);
        only.set(processors.get(turn).copied().unwrap_or_default())?;
        sched_setaffinity(this_thread, &only)
    });
    if let Err(error) = pinned {
        tracing::debug!(%error, shard = shard.number(), "cannot keep the shard on one processor");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_is_on_one_of_the_allowed_processors() {
        let this_thread = Pid::from_raw(0);
        let allowed = sched_getaffinity(this_thread).unwrap();
        let set = |cpus: &CpuSet| -> Vec<usize> {
            let all = 0..CpuSet::count();
            all.filter(|n| cpus.is_set(*n) == Ok(true)).collect()
        };
        let processors = set(&allowed);
        for shard in ShardId::first(5) {
            let pinned = std::thread::spawn(move || {
                pin(shard);
                sched_getaffinity(Pid::from_raw(0)).unwrap()
            });
            let expected = processors[usize::from(shard.number()) % processors.len()];
            assert_eq!(set(&pinned.join().unwrap()), [expected]);
        }
    }
}
