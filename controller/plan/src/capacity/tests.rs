//! What becomes of pools, told as stories.

use std::time::Duration;

use steady_core::v1::instance_state::Value as InstanceState;
use steady_core::v1::placement_constraint_type::Value as Constraint;
use steady_core::v1::pool_instance_state::Value as State;
use steady_core::v1::{
    Attribute, CapacityProvider, CapacityProviderSpec, CapacityProviderStatus, CapacityProviderStrategyItem,
    ContainerInstance, ContainerInstanceSpec, ContainerInstanceStatus, InstancePool, InstanceResources,
    InstanceTemplate, ManagedScaling, Object, PlacementConstraint, object,
};
use steady_core::{Change, Key, Kind, Timestamp, defaults, task, validate};

use super::plan;
use crate::builders::World;

/// A pool `spot`, whoever makes its instances, and a clock.
struct Story {
    world: World,
    now: Timestamp,
}

impl Story {
    fn new(min: i32, max: i32) -> Self {
        let mut story = Story { world: World::new(), now: Timestamp(1_000_000_000) };
        story.edit(|spec| {
            let template = InstanceTemplate { cpu: 1000, memory: 1000, ..InstanceTemplate::default() };
            let pool = InstancePool { min_size: min, max_size: max, template: Some(template), ..<_>::default() };
            spec.pool = Some(pool);
        });
        story
    }

    fn key() -> Key {
        Key::new(Kind::CapacityProvider, "default", "spot")
    }

    fn edit(&mut self, edit: impl Fn(&mut CapacityProviderSpec)) {
        let old = self.world.view.get(&Self::key()).cloned();
        let provider = old.as_ref().and_then(|old| old.as_capacity_provider().cloned()).unwrap_or_default();
        let mut spec = provider.spec.unwrap_or_default();
        edit(&mut spec);
        let mut object = Object::new("default", "spot", CapacityProvider { spec: Some(spec), status: provider.status });
        defaults::fill(&mut object);
        assert_eq!(validate::object(&object), vec![]);
        self.world.put(object);
    }

    fn scaling(&mut self, edit: impl Fn(&mut ManagedScaling)) {
        self.edit(|spec| {
            let group = spec.auto_scaling_group_provider.as_mut().expect("filled in");
            edit(group.managed_scaling.as_mut().expect("filled in"));
        });
    }

    fn status(&self) -> CapacityProviderStatus {
        let object = self.world.view.get(&Self::key()).expect("a provider");
        object.as_capacity_provider().and_then(|p| p.status.clone()).unwrap_or_default()
    }

    fn version(&mut self, version: &str) {
        self.edit(|spec| {
            let template = spec.pool.as_mut().expect("a pool").template.as_mut().expect("one");
            version.clone_into(&mut template.version);
        });
    }

    fn plan(&mut self) {
        let now = self.now;
        self.world.settle(|view| plan(view, &Self::key(), now));
    }

    fn pass(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
        self.plan();
    }

    /// Names of the list in a state.
    fn names(&self, state: State) -> Vec<String> {
        self.status().instances.iter().filter(|i| i.state() == state).map(|i| i.name.clone()).collect()
    }

    fn counts(&self) -> (usize, usize, usize, usize) {
        let count = |state| self.names(state).len();
        (count(State::Pending), count(State::InService), count(State::Draining), count(State::Terminating))
    }

    /// Whoever makes instances has made those that are to be there, and ended the others.
    fn obey(&mut self) {
        for instance in self.status().instances {
            match instance.state() {
                State::Pending => {
                    let template = instance.template.unwrap_or_default();
                    let spec = ContainerInstanceSpec {
                        registered_resources: Some(InstanceResources {
                            cpu: template.cpu,
                            memory: template.memory,
                            ..InstanceResources::default()
                        }),
                        capacity_provider: "spot".into(),
                        attributes: vec![Attribute { name: "ecs.os-type".into(), value: "linux".into() }],
                        status: InstanceState::Active.into(),
                        ..ContainerInstanceSpec::default()
                    };
                    let status = ContainerInstanceStatus { agent_connected: true, ..<_>::default() };
                    let found = ContainerInstance { spec: Some(spec), status: Some(status) };
                    self.world.put(Object::new("default", &instance.name, found));
                }
                State::Terminating => self.silence(&instance.name, false),
                _ => {}
            }
        }
        self.plan();
    }

    fn silence(&mut self, name: &str, lost: bool) {
        let key = Key::new(Kind::ContainerInstance, "default", name);
        let Some(found) = self.world.view.get(&key) else { return };
        let mut object = Object::clone(found);
        if let Some(object::Kind::ContainerInstance(instance)) = &mut object.kind {
            let status = instance.status.get_or_insert_default();
            (status.agent_connected, status.lost) = (false, lost);
        }
        self.world.put(object);
    }

    /// Tasks that wait for this pool.
    fn waiting(&mut self, prefix: &str, count: usize, cpu: i32, memory: i32) {
        for number in 0..count {
            self.world.waiting(&format!("{prefix}{number}"), cpu, memory, |spec| {
                spec.capacity_provider = "spot".into();
            });
        }
    }

    /// One that can only be in a zone.
    fn waiting_in(&mut self, name: &str, zone: &str) {
        self.world.waiting(name, 900, 100, |spec| {
            spec.capacity_provider = "spot".into();
            spec.placement_constraints = vec![PlacementConstraint {
                r#type: Constraint::MemberOf.into(),
                expression: format!("attribute:ecs.availability-zone == {zone}"),
            }];
        });
    }

    /// Its instances are in two zones.
    fn zones(&mut self) {
        self.edit(|spec| spec.pool.as_mut().expect("a pool").availability_zones = vec!["a".into(), "b".into()]);
    }

    fn schedule(&mut self) {
        let key = Key::new(Kind::Cluster, "", "default");
        let now = self.now;
        self.world.settle(|view| crate::scheduler::plan(view, &key, now));
    }

    fn has_waiting(&self) -> usize {
        self.world.view.unplaced("default").count()
    }

    fn reasons(&self) -> Vec<&'static str> {
        plan(&self.world.view, &Self::key(), self.now).waiting.iter().map(|waiting| waiting.reason).collect()
    }
}

#[test]
fn a_pool_grows_from_nothing_by_what_tasks_need_and_says_so() {
    let mut story = Story::new(0, 10);
    story.plan();
    assert_eq!((story.counts(), story.status().reservation as i32), ((0, 0, 0, 0), 100));
    // Three of 400 on each instance of 1000 are too many: two and two and one.
    story.waiting("t", 5, 400, 100);
    story.plan();
    assert_eq!((story.counts(), story.status().reservation as i32), ((3, 0, 0, 0), 200));
    story.pass(20);
    assert_eq!(story.counts().0, 3, "those that are on their way count");
    assert!(story.world.events().iter().any(|text| text.contains("goes from 0 to 3 instances")));
    story.obey();
    assert_eq!(story.counts(), (0, 3, 0, 0));
    story.schedule();
    assert_eq!(story.has_waiting(), 0);
    story.plan();
    assert_eq!((story.status().needed, story.status().in_service, story.status().reservation as i32), (3, 3, 100));
}

#[test]
fn there_are_no_more_than_its_most_and_no_fewer_than_its_least() {
    let mut story = Story::new(2, 3);
    story.plan();
    assert_eq!(story.counts().0, 2);
    story.obey();
    story.waiting("t", 9, 900, 100);
    story.plan();
    assert_eq!(story.counts(), (1, 2, 0, 0));
    assert_eq!(story.reasons(), ["AlreadyAtMaxCapacity"]);
    story.edit(|spec| spec.pool.as_mut().expect("a pool").max_size = 4);
    story.plan();
    assert_eq!(story.counts().0, 2);
    story.scaling(|scaling| scaling.set_status(steady_core::v1::managed::Value::Disabled));
    story.pass(1);
    assert_eq!(story.reasons(), Vec::<&str>::new());
}

#[test]
fn headroom_is_what_instances_are_not_filled_with() {
    let mut story = Story::new(0, 10);
    story.scaling(|scaling| scaling.target_capacity = 50);
    story.waiting("t", 2, 900, 100);
    story.plan();
    assert_eq!(story.counts().0, 4);
}

#[test]
fn instances_that_tasks_left_go_after_a_while_half_of_the_pool_in_a_minute() {
    let mut story = Story::new(0, 10);
    story.waiting("t", 6, 900, 100);
    story.plan();
    story.obey();
    story.schedule();
    for number in 1..6 {
        story.world.end(&format!("t{number}"));
    }
    story.plan();
    story.pass(890);
    assert_eq!(story.counts(), (0, 6, 0, 0));
    story.pass(10);
    // Three of six, and they are empty.
    assert_eq!(story.counts(), (0, 3, 0, 3));
    let leaving = story.names(State::Terminating);
    assert!(!leaving.contains(&story.world.place("t0")), "the task's instance stays");
    story.obey();
    assert_eq!(story.counts(), (0, 3, 0, 0));
    assert!(story.world.view.get(&Key::new(Kind::ContainerInstance, "default", &leaving[0])).is_none());
    story.pass(59);
    assert_eq!(story.counts(), (0, 3, 0, 0));
    story.pass(900);
    assert_eq!(story.counts(), (0, 2, 0, 1));
    // What comes meanwhile ends it.
    story.obey();
    story.waiting("u", 1, 900, 100);
    story.pass(100);
    story.schedule();
    story.pass(900);
    assert_eq!(story.counts(), (0, 2, 0, 0));
}

#[test]
fn an_instance_that_does_not_come_is_given_up_and_another_one_comes() {
    let mut story = Story::new(1, 10);
    story.plan();
    let first = story.names(State::Pending);
    story.pass(299);
    assert_eq!(story.names(State::Pending), first);
    story.pass(1);
    let second = story.names(State::Pending);
    assert!(second.len() == 1 && second != first, "{second:?}");
    assert!(story.world.events().iter().any(|text| text.contains("no agent was connected within 300 s")));
}

#[test]
fn a_lost_instance_is_replaced() {
    let mut story = Story::new(2, 10);
    story.plan();
    story.obey();
    let name = story.names(State::InService)[0].clone();
    story.silence(&name, true);
    story.plan();
    assert_eq!(story.counts(), (1, 1, 0, 0));
    assert!(story.world.view.get(&Key::new(Kind::ContainerInstance, "default", &name)).is_none());
}

#[test]
fn tasks_that_no_instance_would_take_bring_none_and_are_told() {
    let mut story = Story::new(0, 10);
    story.waiting("big", 2, 100, 2000);
    story.plan();
    assert_eq!(story.counts(), (0, 0, 0, 0));
    assert_eq!(story.reasons(), ["TASKS_FIT_NO_INSTANCE"]);
    let waiting = plan(&story.world.view, &Story::key(), story.now).waiting;
    assert!(waiting[0].message.contains("2 tasks of service:web") && waiting[0].message.contains("needs 2000 MiB"));
}

#[test]
fn instances_are_spread_over_zones() {
    let mut story = Story::new(4, 10);
    story.edit(|spec| {
        spec.pool.as_mut().expect("a pool").availability_zones = vec!["a".into(), "b".into()];
    });
    story.plan();
    let zones: Vec<String> = story.status().instances.into_iter().map(|i| i.availability_zone).collect();
    assert_eq!(zones, ["a", "b", "a", "b"]);
}

#[test]
fn room_is_kept_for_more_tasks_and_no_more_than_that() {
    let mut story = Story::new(0, 10);
    story.world.service("web", 0);
    let item = CapacityProviderStrategyItem { capacity_provider: "spot".into(), weight: 1, base: 0 };
    story.world.edit_service("web", |spec| spec.capacity_provider_strategy = vec![item.clone()]);
    // Ten of its tasks fit an instance.
    story.scaling(|scaling| scaling.minimum_schedulable_tasks = 15);
    story.plan();
    assert_eq!(story.counts().0, 2);
    story.obey();
    story.pass(2000);
    story.pass(2000);
    assert_eq!(story.counts(), (0, 2, 0, 0), "they are empty, and wanted");
    story.scaling(|scaling| scaling.minimum_schedulable_tasks = 5);
    story.plan();
    story.pass(900);
    assert_eq!(story.counts(), (0, 1, 0, 1));
}

#[test]
fn another_template_replaces_instances_new_ones_first() {
    let mut story = Story::new(3, 10);
    story.plan();
    story.obey();
    let old = story.names(State::InService);
    story.version("2");
    let mut least = 3;
    for _ in 0..40 {
        story.pass(5);
        story.obey();
        least = least.min(story.counts().1);
        let (pending, there, ..) = story.counts();
        assert!(pending + there <= 4, "one at a time: {:?}", story.counts());
    }
    let new = story.names(State::InService);
    assert_eq!((story.counts(), least), ((0, 3, 0, 0), 3));
    assert!(new.iter().all(|name| !old.contains(name)));
}

#[test]
fn a_template_whose_instances_do_not_come_is_gone_back_from() {
    let mut story = Story::new(2, 10);
    story.plan();
    story.obey();
    let old = story.names(State::InService);
    story.version("bad");
    for _ in 0..20 {
        story.pass(100);
    }
    assert_eq!((story.names(State::InService), story.counts().0), (old, 0));
    assert!(story.world.events().iter().any(|text| text.contains("goes back to the template before")));
    let launched = story.status().launched;
    story.pass(10_000);
    assert_eq!(story.status().launched, launched, "it is not tried again");
    // Another one is.
    story.version("3");
    for _ in 0..30 {
        story.pass(5);
        story.obey();
    }
    assert_eq!(story.status().good_template.expect("one").version, "3");
}

#[test]
fn a_provider_that_is_deleted_takes_its_instances_with_it() {
    let mut story = Story::new(2, 10);
    story.plan();
    story.obey();
    let mut object = Object::clone(story.world.view.get(&Story::key()).expect("a provider"));
    object.meta_mut().deleting = Some(story.now.into());
    story.world.put(object);
    story.plan();
    assert_eq!(story.counts(), (0, 0, 0, 2));
    for name in story.names(State::Terminating) {
        story.silence(&name, false);
    }
    story.plan();
    assert!(story.world.view.get(&Story::key()).is_none());
    assert_eq!(story.world.view.of_kind(Kind::ContainerInstance).count(), 0);
}

#[test]
fn instances_that_others_start_count_and_stay() {
    let mut story = Story::new(0, 10);
    story.world.instance("mine", 1000, 1000);
    story.world.edit_instance("mine", |spec| {
        spec.capacity_provider = "spot".into();
        spec.set_status(InstanceState::Active);
    });
    story.waiting("t", 2, 900, 100);
    story.schedule();
    story.plan();
    assert_eq!((story.counts().0, story.status().in_service), (1, 1));
    story.pass(5000);
    assert!(story.world.view.get(&Key::new(Kind::ContainerInstance, "default", "mine")).is_some());
}

#[test]
fn tasks_that_have_room_where_others_are_bring_no_instance() {
    let mut story = Story::new(0, 10);
    story.waiting("t", 1, 300, 100);
    story.plan();
    story.obey();
    story.schedule();
    // Two more fit beside it; the third does not.
    story.waiting("u", 2, 300, 100);
    story.plan();
    assert_eq!(story.counts(), (0, 1, 0, 0));
    story.waiting("v", 1, 300, 100);
    story.plan();
    assert_eq!(story.counts(), (1, 1, 0, 0));
}

#[test]
fn what_comes_and_has_room_does_not_keep_empty_instances() {
    let mut story = Story::new(0, 10);
    story.waiting("t", 3, 900, 100);
    story.plan();
    story.obey();
    story.schedule();
    story.world.end("t1");
    story.world.end("t2");
    story.plan();
    for number in 0..10 {
        story.pass(90);
        story.waiting(&format!("cron{number}-"), 1, 10, 10);
        story.plan();
        story.schedule();
        story.world.end(&format!("cron{number}-0"));
        story.plan();
    }
    assert!(story.counts().1 < 3, "{:?}", story.counts());
}

#[test]
fn an_instance_that_somebody_drains_is_not_counted_on() {
    let mut story = Story::new(0, 10);
    story.waiting("t", 2, 900, 100);
    story.plan();
    story.obey();
    story.schedule();
    let name = story.world.place("t0");
    story.world.drain(&name, true);
    story.plan();
    assert_eq!(story.counts(), (1, 2, 0, 0), "its task needs another place");
}

#[test]
fn a_silent_instance_is_stood_in_for_and_not_ended() {
    let mut story = Story::new(0, 10);
    story.waiting("t", 1, 900, 100);
    story.plan();
    story.obey();
    story.schedule();
    let name = story.world.place("t0");
    let key = Key::new(Kind::ContainerInstance, "default", &name);
    let mut object = Object::clone(story.world.view.get(&key).expect("an instance"));
    if let Some(object::Kind::ContainerInstance(instance)) = &mut object.kind {
        let status = instance.status.get_or_insert_default();
        (status.agent_connected, status.disconnected_at) = (false, Some(story.now.into()));
    }
    story.world.put(object);
    story.pass(59);
    assert_eq!(story.counts(), (0, 1, 0, 0));
    story.pass(1);
    assert_eq!(story.counts(), (1, 1, 0, 0));
    story.pass(100);
    assert_eq!(story.counts(), (1, 1, 0, 0));
}

#[test]
fn what_drains_and_falls_silent_is_not_ended_with_its_tasks() {
    let (mut story, name) = leaving();
    story.silence(&name, false);
    story.pass(5);
    assert_eq!(story.names(State::Draining), std::slice::from_ref(&name));
    story.world.end("t0");
    story.plan();
    assert!(!story.names(State::Draining).contains(&name));
}

#[test]
fn no_warm_up_and_no_machine_is_no_endless_loop() {
    let mut story = Story::new(3, 10);
    story.scaling(|scaling| scaling.instance_warmup_period = Some(0));
    story.plan();
    for _ in 0..60 {
        story.pass(10);
    }
    let launched = story.status().launched;
    assert!(launched <= 15, "{launched} in ten minutes");
    assert!(story.reasons().contains(&"INSTANCES_FAIL") || story.counts().0 > 0);
    story.pass(900);
    story.pass(1);
    assert!(story.counts().0 > 0, "it is tried again");
}

#[test]
fn what_comes_late_goes_in_order() {
    let mut story = Story::new(1, 10);
    story.plan();
    let late = story.status().instances[0].clone();
    story.pass(300);
    assert!(!story.names(State::Pending).contains(&late.name));
    // It comes all the same, and takes a task at once.
    let spec = ContainerInstanceSpec {
        registered_resources: Some(InstanceResources { cpu: 1000, memory: 1000, ..<_>::default() }),
        capacity_provider: "spot".into(),
        status: InstanceState::Active.into(),
        ..ContainerInstanceSpec::default()
    };
    let status = ContainerInstanceStatus { agent_connected: true, ..<_>::default() };
    let found = ContainerInstance { spec: Some(spec), status: Some(status) };
    story.world.put(Object::new("default", &late.name, found));
    story.waiting("t", 1, 900, 100);
    story.schedule();
    assert_eq!(story.world.place("t0"), late.name);
    story.plan();
    assert_eq!(story.names(State::Draining), std::slice::from_ref(&late.name), "it is not ended with the task");
    story.world.end("t0");
    story.plan();
    assert_eq!(story.names(State::Terminating), [late.name]);
}

#[test]
fn many_that_come_at_once_are_one_event() {
    let mut story = Story::new(150, 200);
    story.plan();
    story.obey();
    assert_eq!(story.counts().1, 150);
    let told: Vec<String> = story.world.events().into_iter().filter(|text| text.contains("in service")).collect();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains(" and 145 more"), "{told:?}");
}

#[test]
fn a_task_for_a_zone_brings_an_instance_there() {
    let mut story = Story::new(2, 10);
    story.zones();
    story.plan();
    story.obey();
    story.waiting_in("t", "b");
    story.plan();
    let pending: Vec<String> = story
        .status()
        .instances
        .into_iter()
        .filter(|i| i.state() == State::Pending)
        .map(|i| i.availability_zone)
        .collect();
    // Agents of this story do not say their zones: neither of the two is one for it.
    assert_eq!(pending, ["b"]);
}

/// A pool whose one instance leaves for another one, with a task on it.
fn leaving() -> (Story, String) {
    let mut story = Story::new(1, 10);
    story.plan();
    story.obey();
    story.waiting("t", 1, 900, 100);
    story.schedule();
    let name = story.world.place("t0");
    story.version("2");
    story.plan();
    story.obey();
    story.plan();
    assert_eq!(story.names(State::Draining), std::slice::from_ref(&name));
    (story, name)
}

#[test]
fn an_instance_that_somebody_made_active_again_drains_before_it_is_ended() {
    let (mut story, name) = leaving();
    let key = Key::new(Kind::ContainerInstance, "default", &name);
    let mut object = Object::clone(story.world.view.get(&key).expect("an instance"));
    if let Some(object::Kind::ContainerInstance(instance)) = &mut object.kind {
        instance.spec.get_or_insert_default().set_status(InstanceState::Active);
    }
    story.world.put(object);
    story.world.end("t0");
    // Until it drains something may be placed on it.
    let first = plan(&story.world.view, &Story::key(), story.now);
    assert!(first.changes().all(|change| !matches!(change, Change::PutStatus { .. })), "{first:?}");
    assert!(first.changes().any(|change| matches!(change, Change::PutSpec { object, .. } if object.name() == name)));
    story.plan();
    assert_eq!(story.names(State::Terminating), [name]);
}

#[test]
fn an_instance_is_ended_only_as_it_was_looked_at() {
    let (mut story, name) = leaving();
    story.world.end("t0");
    let plan = plan(&story.world.view, &Story::key(), story.now);
    let checks = plan.groups[0].iter().filter_map(|change| match change {
        Change::Check { key, expect } => Some((key.name.to_string(), *expect)),
        _ => None,
    });
    let key = Key::new(Kind::ContainerInstance, "default", &name);
    let revision = story.world.view.revision_of(&key);
    assert_eq!(checks.collect::<Vec<_>>(), [(name, revision)]);
}

#[test]
fn new_instances_are_no_more_than_the_most_however_many_have_tasks() {
    let mut story = Story::new(0, 3);
    story.edit(|spec| spec.pool.as_mut().expect("a pool").refresh.get_or_insert_default().batch_size = 3);
    story.waiting("t", 2, 900, 100);
    story.plan();
    story.obey();
    story.schedule();
    story.version("2");
    for round in 0..20 {
        story.pass(5);
        story.obey();
        // What drains is left, and goes on elsewhere.
        for (number, name) in story.names(State::Draining).into_iter().enumerate() {
            let tasks = story.world.view.on_instance("default", &name).filter_map(|object| task::of(object));
            for task in tasks.map(|task| task.object.name().to_owned()).collect::<Vec<String>>() {
                story.world.end(&task);
                story.waiting(&format!("u{round}-{number}-"), 1, 900, 100);
            }
        }
        story.plan();
        story.schedule();
        let wanted = story.status().instances.into_iter().filter(|instance| {
            matches!(instance.state(), State::Pending | State::InService)
                && instance.template.as_ref().is_some_and(|template| template.version == "2")
        });
        assert!(wanted.count() <= 3, "{:?}", story.status().instances);
    }
    assert!(story.counts().1 <= 3 && story.has_waiting() == 0, "{:?}", story.counts());
    assert!(story.status().instances.iter().all(|i| i.template.as_ref().is_some_and(|t| t.version == "2")));
}

#[test]
fn a_template_that_was_mended_is_tried_at_once() {
    let mut story = Story::new(1, 10);
    for _ in 0..20 {
        story.pass(300);
    }
    assert!(story.status().failed_launches > 3);
    let launched = story.status().launched;
    story.version("2");
    story.plan();
    assert_eq!((story.status().failed_launches, story.counts().0), (0, 1));
    assert!(story.status().launched > launched);
}

#[test]
fn a_refresh_wakes_when_the_next_instance_may_be_tried() {
    let mut story = Story::new(1, 10);
    story.edit(|spec| spec.pool.as_mut().expect("a pool").refresh.get_or_insert_default().failure_threshold = 5);
    story.plan();
    story.obey();
    story.version("bad");
    story.plan();
    for _ in 0..12 {
        // Nothing happens but what it asked to be woken for.
        let wakes = plan(&story.world.view, &Story::key(), story.now).wake_at.expect("it goes on");
        story.now = story.now.max(wakes);
        story.plan();
        if !story.status().failed_template.is_empty() {
            return;
        }
    }
    panic!("the template is neither there nor given up: {:?}", story.status());
}

#[test]
fn what_failed_of_one_template_does_not_count_for_the_next() {
    let mut story = Story::new(1, 10);
    story.plan();
    story.obey();
    story.version("2");
    story.plan();
    story.pass(300);
    assert_eq!(story.status().failures, 1);
    story.version("3");
    story.plan();
    story.pass(300);
    assert_eq!((story.status().failures, story.status().failed_template.as_str()), (1, ""));
}

/// A pool whose only instance is empty, a task that can only be in the other zone, and that.
fn useless() -> (Story, String, &'static str) {
    let mut story = Story::new(0, 1);
    story.zones();
    story.waiting("t", 1, 900, 100);
    story.plan();
    story.obey();
    story.world.end("t0");
    let only = story.status().instances[0].clone();
    let other = if only.availability_zone == "a" { "b" } else { "a" };
    story.waiting_in("u", other);
    (story, only.name, other)
}

#[test]
fn an_empty_instance_makes_room_for_one_that_a_task_can_be_on() {
    let (mut story, _, other) = useless();
    for _ in 0..20 {
        story.pass(120);
        story.obey();
    }
    let zones: Vec<String> = story.status().instances.into_iter().map(|i| i.availability_zone).collect();
    assert_eq!(zones, [other]);
}

#[test]
fn an_instance_that_makes_room_is_not_taken_back_while_a_daemons_task_leaves_it() {
    let (mut story, only, _) = useless();
    story.world.service("logs", 1);
    story.world.edit_service("logs", |spec| {
        spec.scheduling_strategy = steady_core::v1::scheduling_strategy::Value::Daemon.into();
    });
    story.world.waiting("d", 10, 10, |spec| {
        (spec.service, spec.group) = ("logs".into(), "service:logs".into());
        spec.container_instance.clone_from(&only);
    });
    story.plan();
    story.pass(900);
    assert_eq!(story.names(State::Draining), std::slice::from_ref(&only));
    story.pass(5);
    assert_eq!(story.names(State::Draining), [only], "it is of no use to what waits");
    story.world.end("d");
    story.plan();
    assert_eq!(story.names(State::Pending).len(), 1);
}

#[test]
fn a_task_of_no_service_keeps_its_instance_and_no_other_one() {
    let mut story = Story::new(3, 10);
    story.plan();
    story.obey();
    story.waiting("t", 1, 900, 100);
    story.schedule();
    let kept = story.world.place("t0");
    story.version("2");
    for _ in 0..40 {
        story.pass(5);
        story.obey();
    }
    assert_eq!((story.counts(), story.names(State::Draining)), ((0, 3, 1, 0), vec![kept]));
    assert_eq!(story.reasons(), ["INSTANCE_DRAINS"]);
}
