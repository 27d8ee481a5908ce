"""One forward pass, many products: traces, pull-backs, push-forwards, the ledger of a flow and its paths."""
