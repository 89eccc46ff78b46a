//! Users: they create, scale, change, delete and re-create services, run and stop tasks, and drain instances.
//!
//! A user who gets no answer asks again for the same thing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use steady_core::v1::deployment_strategy::Value as Strategy;
use steady_core::v1::instance_state::Value as InstanceState;
use steady_core::v1::placement_strategy_type::Value as Placement;
use steady_core::v1::scheduling_strategy::Value as Scheduling;
use steady_core::v1::{
    Action, ApplyRequest, CanaryConfiguration, Change, CommitRequest, ContainerDefinition, ContainerInstance,
    ContainerInstanceSpec, DeleteRequest, DeploymentCircuitBreaker, DeploymentConfiguration, GetRequest, HealthCheck,
    KeyValuePair, LinearConfiguration, Listener, ListenerSpec, LoadBalancer, Object, PlacementStrategy, PortMapping,
    PutSpec, RunTaskRequest, Service, ServiceSpec, StopTaskRequest, TargetGroup, TargetGroupSpec, TaskDefinition,
    TaskDefinitionSpec, change, object,
};
use steady_core::{Key, Kind, task};
use steady_runtime::Client;
use tonic::{Code, Status};

use super::life::lock;
use super::{PATIENCE, World, balancer, monitor, pool};

/// What a service is to be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wish {
    pub(crate) desired: i32,
    pub(crate) least: i32,
    pub(crate) most: i32,
    pub(crate) image: &'static str,
    pub(crate) memory: i32,
    /// Host port, or 0 for none.
    pub(crate) port: i32,
    /// Any new value is a new definition.
    pub(crate) version: u32,
    pub(crate) spread: bool,
    /// A deployment whose tasks fail is given up, and perhaps rolled back.
    pub(crate) breaker: Breaker,
    pub(crate) strategy: Strategy,
    /// One task on each instance, however many are desired.
    pub(crate) daemon: bool,
    /// On instances of the pool.
    pub(crate) pooled: bool,
    /// As many tasks as there is to do, `desired` at most.
    pub(crate) scaled: bool,
}

/// How a deployment that fails ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breaker {
    Never,
    GivesUp,
    RollsBack,
}

impl Wish {
    /// A service that any cluster can run.
    pub(crate) fn simple(desired: i32) -> Self {
        Wish {
            desired,
            least: 50,
            most: 200,
            image: "good",
            memory: 128,
            port: 0,
            version: 1,
            spread: true,
            breaker: Breaker::Never,
            strategy: Strategy::Rolling,
            daemon: false,
            pooled: false,
            scaled: false,
        }
    }

    /// The same of a service with one task on each instance: small, so that there is room for it.
    fn everywhere(self) -> Self {
        Wish { daemon: true, memory: 64, port: 0, least: 0, most: 100, strategy: Strategy::Rolling, ..self }
    }
}

/// What users want, and have asked for.
#[derive(Default)]
pub(crate) struct Wishes {
    /// By name; `None`: not to be there.
    pub(crate) services: BTreeMap<String, Option<Wish>>,
    /// Standalone tasks: client token and how many.
    pub(crate) tasks: BTreeMap<String, i32>,
    pub(crate) pool: Option<pool::PoolWish>,
}

/// The users of a world.
pub(crate) struct Users {
    pub(crate) world: Arc<World>,
    pub(crate) client: Client,
}

impl Users {
    /// Asks until there is an answer.
    async fn ask<T, F: Future<Output = Result<T, Status>>>(&self, ask: impl Fn(Client) -> F) -> Result<T, Status> {
        loop {
            let place = self.client.place();
            match tokio::time::timeout(PATIENCE, ask(self.client.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) if status.code() != Code::Unavailable && status.code() != Code::Aborted => {
                    return Err(status);
                }
                Ok(Err(_)) | Err(_) => {}
            }
            self.client.rotate(place);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Makes a service as it is wished for. One that is still being deleted is waited for.
    pub(crate) async fn apply(&self, name: &str, wish: &Wish) {
        let wish = &self.of_name(name, wish);
        lock(&self.world.wishes).services.insert(name.to_owned(), Some(wish.clone()));
        loop {
            let mut objects = vec![definition(name, wish), self.service(name, wish)];
            if self.world.settings.balanced {
                objects.splice(0..0, behind());
            }
            if wish.scaled {
                objects.extend(monitor::objects(name, wish));
            }
            let applied = self.ask(|client| {
                let objects = objects.clone();
                async move { client.objects().apply(ApplyRequest { objects, dry_run: false }).await }
            });
            match applied.await {
                Ok(_) => return,
                Err(status) if status.code() == Code::InvalidArgument && status.message().contains("deleted") => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if self.world.is_over() {
                        return;
                    }
                }
                Err(status) => return self.world.fail(format!("an apply was refused: {status}")),
            }
        }
    }

    /// What a service of this name is in this world.
    fn of_name(&self, name: &str, wish: &Wish) -> Wish {
        let settings = &self.world.settings;
        if settings.daemon && name == "s0" {
            return wish.clone().everywhere();
        }
        let number = name.strip_prefix('s').and_then(|number| number.parse().ok()).unwrap_or(0usize);
        let pooled = settings.pool && (number % 2 == 1 || settings.services == 1);
        Wish { pooled, scaled: settings.scaled && number + 1 == settings.services, ..wish.clone() }
    }

    fn service(&self, name: &str, wish: &Wish) -> Object {
        let mut object = service(name, wish);
        if let Some(object::Kind::Service(Service { spec: Some(spec), .. })) = &mut object.kind
            && self.world.settings.priorities
        {
            // The second one comes before the first, the third may go for either.
            let number = name.bytes().last().unwrap_or_default() % 3;
            let (priority, preemptible) = [(0, true), (10, false), (-10, true)][usize::from(number)];
            (spec.priority, spec.preemptible) = (priority, preemptible && !wish.daemon);
        }
        if let Some(object::Kind::Service(Service { spec: Some(spec), .. })) = &mut object.kind
            && self.world.settings.balanced
        {
            spec.load_balancers = vec![LoadBalancer {
                target_group_arn: balancer::GROUP.into(),
                container_name: "main".into(),
                container_port: 80,
                advanced_configuration: None,
            }];
        }
        object
    }

    /// Deletes a service.
    pub(crate) async fn delete(&self, name: &str) {
        lock(&self.world.wishes).services.insert(name.to_owned(), None);
        let reference = Key::new(Kind::Service, "default", name).reference();
        let deleted = self.ask(|client| {
            let r#ref = Some(reference.clone());
            async move { client.objects().delete(DeleteRequest { r#ref }).await }
        });
        match deleted.await {
            Err(status) if status.code() != Code::NotFound => {
                self.world.fail(format!("a delete was refused: {status}"));
            }
            _ => {}
        }
    }

    /// Runs standalone tasks, twice with the same token: they are started once (S5).
    pub(crate) async fn run(&self, family: &str, token: &str, count: i32) {
        let request = RunTaskRequest {
            task_definition: family.to_owned(),
            count,
            started_by: token.to_owned(),
            client_token: token.to_owned(),
            preemptible: self.world.settings.priorities,
            ..RunTaskRequest::default()
        };
        for _ in 0..2 {
            let ran = self.ask(|client| {
                let request = request.clone();
                async move { client.tasks().run_task(request).await }
            });
            // Its definition may have gone with a service that was never made.
            if ran.await.is_ok() {
                lock(&self.world.wishes).tasks.insert(token.to_owned(), count);
            }
        }
    }

    /// Stops any task.
    pub(crate) async fn stop_any(&self) {
        let tasks: Vec<String> =
            lock(&self.world.judge).view.of_kind(Kind::Task).map(|task| task.name().to_owned()).collect();
        if let Some(task) = self.world.pick(&tasks) {
            self.stop(&task).await;
        }
    }

    async fn stop(&self, task: &str) {
        let request = StopTaskRequest { task: task.to_owned(), reason: "sim".into(), ..StopTaskRequest::default() };
        let _ = self
            .ask(|client| {
                let request = request.clone();
                async move { client.tasks().stop_task(request).await }
            })
            .await;
    }

    /// Drains an instance, or makes it ACTIVE again.
    pub(crate) async fn set_state(&self, instance: &str, state: InstanceState) {
        let reference = Key::new(Kind::ContainerInstance, "default", instance).reference();
        loop {
            let found = self.ask(|client| {
                let r#ref = Some(reference.clone());
                async move { client.objects().get(GetRequest { r#ref }).await }
            });
            let Ok(found) = found.await else { return };
            let Some(mut object) = found.into_inner().object else { return };
            if object.as_container_instance().and_then(|i| i.spec.as_ref()).is_some_and(|s| s.status() == state) {
                return;
            }
            let spec = ContainerInstanceSpec { status: state.into(), ..ContainerInstanceSpec::default() };
            object.kind = Some(object::Kind::ContainerInstance(ContainerInstance { spec: Some(spec), status: None }));
            let put = PutSpec { object: Some(object), fields: vec!["status".into()], expect: None };
            let changes = vec![Change { change: Some(change::Change::PutSpec(put)) }];
            let request = CommitRequest { changes, fence: None, sequencer: None };
            let put = self.ask(|client| {
                let request = request.clone();
                async move { client.objects().commit(request).await }
            });
            match put.await {
                // Those of a pool go.
                Err(status) if status.code() == Code::NotFound => return,
                Err(status) if status.code() != Code::Aborted => {
                    return self.world.fail(format!("a drain was refused: {status}"));
                }
                _ => {}
            }
        }
    }

    /// Wants another pool.
    async fn change_pool(&self) {
        let old = lock(&self.world.wishes).pool.clone();
        self.apply_pool(pool::PoolWish::some(&self.world, old.as_ref())).await;
    }

    /// Has the pool be as it is wished for.
    pub(crate) async fn apply_pool(&self, wish: pool::PoolWish) {
        let object = wish.object(&self.world.settings);
        lock(&self.world.wishes).pool = Some(wish);
        let applied = self.ask(|client| {
            let objects = vec![object.clone()];
            async move { client.objects().apply(ApplyRequest { objects, dry_run: false }).await }
        });
        if let Err(status) = applied.await {
            self.world.fail(format!("an apply of the pool was refused: {status}"));
        }
    }

    /// Instances there are, of the pool and others.
    fn instances(&self) -> Vec<String> {
        let judge = lock(&self.world.judge);
        judge.view.of_kind(Kind::ContainerInstance).map(|object| object.name().to_owned()).collect()
    }

    /// Changes something at random.
    pub(crate) async fn change_something(&self) {
        let world = &self.world;
        if world.settings.pool && (lock(&world.wishes).pool.is_none() || world.chance(0.15)) {
            self.change_pool().await;
        }
        let name = format!("s{}", world.below(world.settings.services));
        let wish = lock(&world.wishes).services.get(&name).cloned().flatten();
        match (wish, world.below(12)) {
            (None, _) => self.apply(&name, &world.wish(None)).await,
            (Some(_), 0) => self.delete(&name).await,
            (Some(wish), 1..=3) => {
                let desired = world.below(world.most(wish.memory, wish.port) + 1) as i32;
                self.apply(&name, &Wish { desired, ..wish }).await;
            }
            (Some(wish), 4..=7) => self.apply(&name, &world.wish(Some(&wish))).await,
            (Some(wish), 8) if wish.port == 0 => {
                let token = format!("token-{}", world.below(1_000_000));
                self.run(&name, &token, 1 + world.below(3) as i32).await;
            }
            (Some(_), 9) => self.stop_any().await,
            (Some(_), 8 | 10) => {
                if let Some(instance) = world.pick(&self.instances()) {
                    self.set_state(&instance, InstanceState::Draining).await;
                }
            }
            (Some(_), _) => {
                for instance in self.instances() {
                    self.set_state(&instance, InstanceState::Active).await;
                }
            }
        }
    }

    /// Leaves everything as something that can be had.
    pub(crate) async fn make_possible(&self) {
        for instance in self.instances() {
            self.set_state(&instance, InstanceState::Active).await;
        }
        let pool = lock(&self.world.wishes).pool.clone();
        if let Some(mut pool) = pool {
            let failed = pool::has_failed(&lock(&self.world.judge).view);
            pool.make_possible(&self.world.settings, failed);
            self.apply_pool(pool).await;
        }
        // Standalone tasks run for ever, and need not leave room for services.
        let view = lock(&self.world.judge).view.clone();
        let alone = view.of_kind(Kind::Task).filter_map(|t| task::of(t)).filter(|t| t.spec.service.is_empty());
        for task in alone.filter(task::View::is_wanted) {
            self.stop(task.object.name()).await;
        }
        let wishes = lock(&self.world.wishes).services.clone();
        for (name, wish) in wishes {
            match wish {
                None => self.delete(&name).await,
                Some(wish) => {
                    let throttled = lock(&self.world.judge)
                        .view
                        .get(&Key::new(Kind::Service, "default", &name))
                        .and_then(|o| o.as_service()?.status.as_ref()?.throttle.clone())
                        .is_some_and(|t| t.failures > 3);
                    // What failed, or is failing, is wanted anew.
                    let anew = throttled || wish.image != "good" || wish.breaker != Breaker::Never;
                    let version = wish.version + u32::from(anew) * 1000;
                    self.apply(&name, &Wish { image: "good", version, ..wish }).await;
                }
            }
        }
    }
}

/// What services are behind.
fn behind() -> Vec<Object> {
    let group = TargetGroupSpec { deregistration_delay_seconds: Some(balancer::DELAY), ..TargetGroupSpec::default() };
    let forward = Action { r#type: "forward".into(), target_group_arn: balancer::GROUP.into(), ..Action::default() };
    let listener = ListenerSpec { port: 80, default_actions: vec![forward], ..ListenerSpec::default() };
    vec![
        Object::new("default", balancer::GROUP, TargetGroup { spec: Some(group) }),
        Object::new("default", "http", Listener { spec: Some(listener) }),
    ]
}

fn definition(name: &str, wish: &Wish) -> Object {
    let container = ContainerDefinition {
        name: "main".into(),
        image: wish.image.into(),
        memory: wish.memory,
        cpu: wish.memory,
        stop_timeout: Some(3),
        health_check: (wish.image == "flaps").then(|| HealthCheck {
            command: vec!["CMD-SHELL".into(), "true".into()],
            interval: Some(5),
            retries: Some(2),
            ..HealthCheck::default()
        }),
        environment: vec![KeyValuePair { name: "VERSION".into(), value: wish.version.to_string() }],
        // Some port, where none is wished for: load balancers need one.
        port_mappings: vec![PortMapping { container_port: 80, host_port: wish.port, ..PortMapping::default() }],
        ..ContainerDefinition::default()
    };
    let spec = TaskDefinitionSpec {
        family: name.to_owned(),
        container_definitions: vec![container],
        ..TaskDefinitionSpec::default()
    };
    Object::new("", name, TaskDefinition { spec: Some(spec), status: None })
}

fn service(name: &str, wish: &Wish) -> Object {
    let strategy = PlacementStrategy { r#type: Placement::Spread.into(), field: "instanceId".into() };
    let spec = ServiceSpec {
        task_definition: name.to_owned(),
        desired_count: (!wish.daemon && !wish.scaled).then_some(wish.desired),
        scheduling_strategy: if wish.daemon { Scheduling::Daemon } else { Scheduling::Replica }.into(),
        deployment_configuration: Some(DeploymentConfiguration {
            maximum_percent: Some(wish.most),
            minimum_healthy_percent: Some(wish.least),
            deployment_circuit_breaker: Some(DeploymentCircuitBreaker {
                enable: wish.breaker != Breaker::Never,
                rollback: wish.breaker == Breaker::RollsBack,
                ..DeploymentCircuitBreaker::default()
            }),
            strategy: wish.strategy.into(),
            bake_time_in_minutes: (wish.strategy == Strategy::BlueGreen).then_some(0),
            linear_configuration: (wish.strategy == Strategy::Linear)
                .then_some(LinearConfiguration { step_percent: Some(40.0), step_bake_time_in_minutes: Some(0) }),
            canary_configuration: (wish.strategy == Strategy::Canary)
                .then_some(CanaryConfiguration { canary_percent: None, canary_bake_time_in_minutes: Some(0) }),
            ..DeploymentConfiguration::default()
        }),
        capacity_provider_strategy: wish.pooled.then(pool::strategy).into_iter().collect(),
        placement_strategy: (wish.spread && !wish.daemon).then_some(strategy).into_iter().collect(),
        ..ServiceSpec::default()
    };
    Object::new("default", name, Service { spec: Some(spec), status: None })
}
