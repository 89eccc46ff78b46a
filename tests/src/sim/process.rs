//! Processes: what they run, how they are killed, and how they come back.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use steady_agent::{Identity, Settings as AgentSettings};
use steady_apiserver::server;
use steady_apiserver::storage::{Grouped, Storage};
use steady_controller::{Name, run_controllers};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::service::Routes;

use super::life::{Life, Moment, lock};
use super::machine::MachineLink;
use super::net;
use super::store::{Marked, StoreLink};
use super::{World, balancer, monitor, pool};

/// What a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    Api(usize),
    Controllers(Vec<Name>),
    Agent(usize),
    Balancer,
    /// Makes instances.
    Pool,
    /// Tells how much there is to do.
    Monitor,
}

/// A process, in one of its lives.
pub(crate) struct Process {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) life: Arc<Life>,
    running: AbortHandle,
    /// Asks controllers to end in good order.
    ending: watch::Sender<bool>,
    lives: u32,
}

/// An API server that answers.
pub(crate) struct Api {
    pub(crate) life: Arc<Life>,
    pub(crate) routes: Routes,
}

impl World {
    /// Starts every process.
    pub(crate) fn start_all(self: &Arc<Self>) {
        let mut roles: Vec<(Role, String)> =
            (0..self.settings.apis).map(|i| (Role::Api(i), format!("api-{i}"))).collect();
        for copy in 0..2 {
            if self.settings.split {
                let each = Name::ALL.map(|name| (Role::Controllers(vec![name]), format!("{}-{copy}", name.as_str())));
                roles.extend(each);
            } else {
                roles.push((Role::Controllers(Name::ALL.to_vec()), format!("controllers-{copy}")));
            }
        }
        roles.extend((0..self.settings.instances).map(|i| (Role::Agent(i), format!("agent-{i}"))));
        let balancers = if self.settings.balanced { 2 } else { 0 };
        roles.extend((0..balancers).map(|i| (Role::Balancer, format!("lb{i}"))));
        let pools = if self.settings.pool { 2 } else { 0 };
        roles.extend((0..pools).map(|i| (Role::Pool, format!("pool-{i}"))));
        roles.extend(self.settings.scaled.then(|| (Role::Monitor, "monitor".to_owned())));
        for (index, (role, name)) in roles.into_iter().enumerate() {
            let process = self.launch(index, role, name, 0);
            lock(&self.processes).push(process);
        }
    }

    fn launch(self: &Arc<Self>, index: usize, role: Role, name: String, lives: u32) -> Process {
        let life = Arc::new(Life::new(index, &name, self.start));
        let (ending, end) = watch::channel(false);
        let (world, its) = (Arc::clone(self), Arc::clone(&life));
        let running = match role.clone() {
            Role::Api(number) => tokio::spawn(async move { world.run_api(number, its).await }),
            Role::Controllers(names) => {
                let holder = format!("{name}.{lives}");
                tokio::spawn(async move {
                    let client = net::client(&world, &its);
                    run_controllers(&names, client, its, holder, end, None).await;
                })
            }
            Role::Agent(number) => tokio::spawn(async move { world.run_agent(number, its, end).await }),
            Role::Balancer => tokio::spawn(balancer::run(world, its, format!("{name}-{lives}"))),
            Role::Pool => tokio::spawn(pool::run(world, its, format!("{name}.{lives}"), end)),
            Role::Monitor => tokio::spawn(monitor::run(world, its)),
        };
        Process { role, name, life, running: running.abort_handle(), ending, lives }
    }

    async fn run_api(self: Arc<Self>, number: usize, life: Arc<Life>) {
        let mut store: Arc<dyn Storage> = Arc::new(StoreLink { world: Arc::clone(&self), life: Arc::clone(&life) });
        if self.settings.grouped {
            store = Arc::new(Marked { world: Arc::clone(&self), store: Grouped::new(store, 1) });
        }
        let uids = Arc::clone(&self);
        let new_uid = Arc::new(move || format!("{:032x}", uids.uids.fetch_add(1, Ordering::Relaxed) + 1));
        let opened = server::open(store, Arc::clone(&life) as _, new_uid).await;
        let Ok((registry, feed)) = opened else {
            // As a supervisor would: an API server that cannot start is started again.
            return self.crash(&life, "the store does not answer");
        };
        let following = Abort(feed.abort_handle());
        let api = Api { life: Arc::clone(&life), routes: server::routes(registry) };
        lock(&self.apis)[number] = Some(Arc::new(api));
        let ended = feed.await;
        drop(following);
        if !life.is_dead() {
            self.fail(format!("S9: the cache of {} ended: {ended:?}", life.name));
        }
    }

    async fn run_agent(self: Arc<Self>, number: usize, life: Arc<Life>, ending: watch::Receiver<bool>) {
        let machine = self.machine(number);
        let directory = self.disk.path().join(&machine.name);
        let identity = Identity::load_or(&directory, &machine.name, || {
            Ok(format!("{:032x}", self.uids.fetch_add(1, Ordering::Relaxed) + 1))
        });
        let identity = match identity {
            Ok(identity) => identity,
            Err(error) => return self.fail(format!("{}: {error}", life.name)),
        };
        let settings = AgentSettings {
            cluster: "default".into(),
            name: machine.name.clone(),
            spec: machine.spec.clone(),
            directory: Some(directory),
            holder: life.name.clone(),
            endpoint: None,
            image_cleanup: None,
            figures: None,
            dns: Vec::new(),
            stop_tasks: false,
        };
        let client = net::client(&self, &life);
        let runtime = Arc::new(MachineLink { world: Arc::clone(&self), machine, life: Arc::clone(&life) });
        let ended = steady_agent::run(settings, identity, client, runtime, Arc::clone(&life) as _, ending).await;
        if let Err(error) = ended
            && !life.is_dead()
        {
            self.fail(format!("{} ended: {error}", life.name));
        }
    }

    /// The API server of a number, if it answers.
    pub(crate) fn api(&self, number: usize) -> Option<Arc<Api>> {
        lock(&self.apis)[number].clone().filter(|api| !api.life.is_dead())
    }

    /// Kills a process right now, if this is its life; it comes back by itself.
    pub(crate) fn crash(self: &Arc<Self>, life: &Arc<Life>, why: &str) {
        if life.is_dead() || life.process >= lock(&self.processes).len() {
            return;
        }
        self.fault("crash", &format!("{} {why}", life.name));
        life.end();
        let back = self.restart_delay();
        let (role, name, lives) = {
            let processes = lock(&self.processes);
            let process = &processes[life.process];
            process.running.abort();
            (process.role.clone(), process.name.clone(), process.lives + 1)
        };
        if let Role::Api(number) = role {
            lock(&self.apis)[number] = None;
        }
        let (world, index) = (Arc::clone(self), life.process);
        tokio::spawn(async move {
            tokio::time::sleep(back).await;
            if matches!(role, Role::Agent(number) if world.machine(number).is_gone()) {
                return;
            }
            world.note("start", &name);
            let process = world.launch(index, role, name, lives);
            lock(&world.processes)[index] = process;
        });
    }

    /// Starts the agent of a machine that was not there before.
    pub(crate) fn start_agent(self: &Arc<Self>, number: usize) {
        let index = lock(&self.processes).len();
        let name = format!("agent-{number}");
        self.note("start", &name);
        let process = self.launch(index, Role::Agent(number), name, 0);
        lock(&self.processes).push(process);
    }

    /// Ends the agent of a machine that is gone.
    pub(crate) fn end_agent(&self, number: usize) {
        for process in lock(&self.processes).iter().filter(|process| process.role == Role::Agent(number)) {
            process.life.end();
            process.running.abort();
        }
    }

    /// What a process does to something outside begins: one that is dead or frozen does nothing more; one may crash right here.
    pub(crate) async fn begin(self: &Arc<Self>, life: &Arc<Life>) -> Option<Moment> {
        life.awake().await;
        let moment = self.write(life);
        if life.is_dead() || moment == Some(Moment::Before) {
            self.crash(life, "before a call to the outside");
            return pending().await;
        }
        moment
    }

    /// It is done.
    pub(crate) async fn finish(self: &Arc<Self>, life: &Arc<Life>, moment: Option<Moment>) {
        life.awake().await;
        match moment {
            Some(Moment::After) => {
                self.crash(life, "in a call to the outside");
                pending::<()>().await;
            }
            Some(_) => {
                let (world, life) = (Arc::clone(self), Arc::clone(life));
                tokio::spawn(async move { world.crash(&life, "after a call to the outside") });
            }
            None if life.is_dead() => pending().await,
            None => {}
        }
    }

    /// Asks a process of controllers to end, and kills it soon after.
    pub(crate) fn end_in_order(self: &Arc<Self>, index: usize) {
        let life = {
            let processes = lock(&self.processes);
            processes[index].ending.send_replace(true);
            Arc::clone(&processes[index].life)
        };
        let world = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.crash(&life, "was asked to end");
        });
    }

    /// Lives of the processes, with their places and roles.
    pub(crate) fn lives(&self) -> Vec<(usize, Role, Arc<Life>)> {
        let processes = lock(&self.processes);
        processes.iter().enumerate().map(|(i, p)| (i, p.role.clone(), Arc::clone(&p.life))).collect()
    }

    /// Ends every fault that goes on.
    pub(crate) fn heal(&self) {
        for (_, _, life) in self.lives() {
            life.heal();
        }
    }
}

struct Abort(AbortHandle);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}
