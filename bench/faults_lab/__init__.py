"""The laboratory of faults: requests that are all accounted for, while children, models and gateways are taken away.

`ledger` every request and what came of it · `generator` sends them when they are due · `pictures` images that say what
the right answer is · `target` a gateway under test, seen from outside · `nemesis` what is done to it · `checker` what
must hold afterwards · `trial` one fault under load, from start to verdict · the rest: the faults themselves, by kind.
"""
