# default_runtime.py, and a check of the queue before the first iteration.
_base_ = './default_runtime.py'

default_hooks = dict(check_queue=dict(type='QueueCheckHook'))
