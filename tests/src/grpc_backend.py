# A gRPC server that says back what it was told, and the health service that load balancers ask.
import os, sys, time
from concurrent import futures
import grpc

def echo(request, context):
    return request + os.environ.get("STEADY_TASK", "?").encode()

def health(request, context):
    return b"\x08\x01"

identity = lambda data: data
handler = grpc.method_handlers_generic_handler("test.Echo", {
    "Say": grpc.unary_unary_rpc_method_handler(echo, identity, identity),
    "Count": grpc.unary_stream_rpc_method_handler(lambda r, c: (bytes([n]) for n in range(r[0])), identity, identity),
})
checks = grpc.method_handlers_generic_handler("grpc.health.v1.Health", {
    "Check": grpc.unary_unary_rpc_method_handler(health, identity, identity),
})
server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((handler, checks))
server.add_insecure_port("0.0.0.0:" + os.environ["PORT"])
server.start()
server.wait_for_termination()
