# {}: a stub for a macro of your own
NYI Please override macro \%cstate{}
