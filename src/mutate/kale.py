
import logging, time
from kale.common import kfputils

def patient(get_run, pause=30, errors=3):
    def get(*args, **kwargs):
        for error in range(errors):
            try:
                return get_run(*args, **kwargs)
            except Exception as reason:
                logging.getLogger('tenancy-fixer').warning('asking for the run failed, trying again in %s s: %s', pause, reason)
                time.sleep(pause)
        return get_run(*args, **kwargs)
    return get

kfputils.get_run = patient(kfputils.get_run)
