# {}: what precedes a list of resources
%if{%usable-compressions{%{real_host}}}{\
	used-log-compression="%used-log-compression{%{real_host}}"\n\
	used-net-compression="%used-net-compression{%{real_host}}"\n\
}\
%if{%usable-digests{%{real_host}}}{\
	used-log-digest="%used-log-digest{%{real_host}}"\n\
	used-net-digest="%used-net-digest{%{real_host}}"\n\
}
