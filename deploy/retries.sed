# Changes Kubeflow's configuration of Argo so that a step also gets a new pod if its pod was evicted, or its node was shut down, or its
# processes were killed. As shipped (retryPolicy: OnError), Argo replaces only pods that vanish. The condition leaves out exit code 1,
# with which the launcher of Kubeflow reports any failure of a step, and which the step has dealt with in its pod (components/retry.py),
# and whole pipelines, whose end has no exit code. 64, 137 and 143 are the exit codes of a container whose processes were killed; messages
# that begin with "The node" or "Pod" are those of the kubelet.
s/^( *)retryPolicy: OnError$/\1retryPolicy: Always\n\1expression: 'lastRetry.status == "Error" || lastRetry.exitCode in ["64", "137", "143"] || lastRetry.message matches "(?i)^(the node|pod) "'/
