# {host}: = replstate
%replstate{}
