# default_runtime.py with a check of the queue length before the first iteration.
_base_ = './default_runtime.py'

default_hooks = dict(queue_check=dict(type='QueueCheckHook'))
