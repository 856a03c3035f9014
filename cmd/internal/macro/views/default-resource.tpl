# {host}: the same, for those who replace view-default
%if{%and{%{res}}{%not{%is-guest{%{res}}{%{host}}}}}{\
	%split-brain-warning{}\
	%device-info{}\
	%status-line{}\n\
	%resource-hints{}\
	%syncinfo{}\
	%replinfo{}\
	%resource-errors{}\
}
