# {host}: = sync-line
%sync-line{}
