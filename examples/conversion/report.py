def report(runs, args):
    pass
