# {host}: = outdated-flags
%outdated-flags{}
