#!/usr/bin/env python3
"""A scheduler of one's own, in Python: the instance with the most memory left.

It knows the API's .proto files and nothing else of Steady: Watch tells it what there is, Commit with Bind places. It places
the tasks whose schedulerName is `most-memory`, beside Steady's own scheduler and any number of others.

Needs grpcio, protobuf and protoc (Debian: python3-grpcio python3-protobuf protobuf-compiler libprotobuf-dev).

    python3 examples/scheduler-python/scheduler.py 127.0.0.1:7443
"""

import glob
import os
import subprocess
import sys
import tempfile

import grpc

NAME = "most-memory"
# A commit takes 100 changes, and a Bind counts two more than its tasks.
AT_ONCE = 50


def messages():
    """The API's messages, compiled from its .proto files."""
    protos = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "proto")
    out = tempfile.mkdtemp()
    files = sorted(glob.glob(os.path.join(protos, "steady", "v1", "*.proto")))
    subprocess.run(["protoc", "-I", protos, "--python_out", out, *files], check=True)
    sys.path.insert(0, out)
    from steady.v1 import meta_pb2, objects_pb2

    return meta_pb2, objects_pb2


def main():
    server = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:7443"
    meta, api = messages()
    kinds = meta.Kind
    channel = grpc.insecure_channel(server, options=[("grpc.max_receive_message_length", -1)])
    watch = channel.unary_stream(
        "/steady.v1.Objects/Watch", api.WatchRequest.SerializeToString, api.WatchResponse.FromString
    )
    commit = channel.unary_unary(
        "/steady.v1.Objects/Commit", api.CommitRequest.SerializeToString, api.CommitResponse.FromString
    )
    world, whole = {}, False
    print(f"{NAME}: watching", flush=True)
    for news in watch(api.WatchRequest(kinds=[kinds.Task, kinds.ContainerInstance, kinds.Reservation])):
        for event in news.events:
            key = (event.object.WhichOneof("kind"), event.object.meta.cluster, event.object.meta.name)
            if event.deleted:
                world.pop(key, None)
            else:
                world[key] = event.object
        whole = whole or news.phase == api.WatchResponse.PHASE_INIT_DONE
        # Half a snapshot, or half a revision, is nothing to decide on.
        if whole and not news.more:
            place(world, commit, api)


def place(world, commit, api):
    """Places what waits, as far as there is room."""
    free = room(world)
    bound = {}
    for (kind, cluster, name), object in sorted(world.items(), key=lambda item: item[0]):
        if kind != "task" or object.task.spec.scheduler_name != NAME:
            continue
        spec, status = object.task.spec, object.task.status
        # Ports, other resources, attributes and constraints are more than this scheduler knows of: such tasks are left alone.
        demand = spec.demand
        if demand.ports or demand.named or spec.requires_attributes or spec.placement_constraints:
            continue
        if spec.target_instance or spec.capacity_provider:
            continue
        if spec.container_instance or status.desired_status != 1 or status.last_status == 8:
            continue
        fits = [
            (left, where)
            for where, left in free.items()
            if where[0] == cluster and left[0] >= spec.demand.memory and left[1] >= spec.demand.cpu
        ]
        if not fits:
            continue
        (memory, cpu), where = max(fits)
        free[where] = (memory - spec.demand.memory, cpu - spec.demand.cpu)
        tasks = bound.setdefault(where, [])
        if len(tasks) < AT_ONCE:
            tasks.append(api.BoundTask(name=name, expect=api.Expect(revision=object.meta.revision)))
    for (cluster, instance), tasks in bound.items():
        reservation = world.get(("reservation", cluster, instance))
        revision = reservation.meta.revision if reservation else 0
        bind = api.Bind(
            cluster=cluster,
            container_instance=instance,
            reservation=api.Expect(revision=revision),
            scheduler=NAME,
            tasks=tasks,
        )
        try:
            commit(api.CommitRequest(changes=[api.Change(bind=bind)]))
            print(f"{NAME}: {len(tasks)} placed on {instance}", flush=True)
        except grpc.RpcError as error:
            # Somebody else was faster, or the instance is not what it was: the watch tells of it.
            if error.code() not in (grpc.StatusCode.ABORTED, grpc.StatusCode.FAILED_PRECONDITION):
                raise
            print(f"{NAME}: {instance}: {error.details()}", flush=True)


def room(world):
    """MiB and CPU units that each instance has left, of those that take tasks."""
    free = {}
    for (kind, cluster, name), object in world.items():
        if kind == "container_instance":
            spec, status = object.container_instance.spec, object.container_instance.status
            if status.agent_connected and spec.status in (0, 1) and not object.meta.HasField("deleting"):
                free[cluster, name] = (spec.registered_resources.memory, spec.registered_resources.cpu)
    for (kind, cluster, _), object in world.items():
        if kind == "task" and object.task.status.last_status != 8:
            where, demand = (cluster, object.task.spec.container_instance), object.task.spec.demand
            if where in free:
                memory, cpu = free[where]
                free[where] = (memory - demand.memory, cpu - demand.cpu)
    return free


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
