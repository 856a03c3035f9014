# {host}: = resource-errors
%resource-errors{}
